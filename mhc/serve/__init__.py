"""An OpenAI-compatible server over one engine, which answers many requests at once.

A request is read (requests.py), its prompt queued for the one thread that decodes (worker.py), and what comes of it is written
as OpenAI writes it (answers.py); app.py has the addresses, guards.py what stands before them, metrics.py what is counted, page/ the
page at /.
"""
