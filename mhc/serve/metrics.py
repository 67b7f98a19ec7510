"""What the server counts, in Prometheus' format at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One registry a server. Acceptance of head k over a time: the increase of mhc_accepted_tokens_total{head="k"} over that of
    mhc_drafted_tokens_total{head="k"}; tokens per step: that of mhc_generated_tokens_total over mhc_steps_total."""

    def __init__(self, heads: int, model: str):
        self.registry = registry = CollectorRegistry()
        Gauge("mhc_model_info", "What is served.", ["model"], registry=registry).labels(model).set(1)
        self.requests = Counter(
            "mhc_requests", "Requests by address and status.", ["path", "status"], registry=registry
        )
        self.prompt_tokens = Counter("mhc_prompt_tokens", "Tokens of prompts read.", registry=registry)
        self.generated_tokens = Counter(
            "mhc_generated_tokens", "Tokens of answers, bonus tokens included.", registry=registry
        )
        self.steps = Counter(
            "mhc_steps", "Steps of answers: rows times forwards that emitted tokens.", registry=registry
        )
        drafted = Counter("mhc_drafted_tokens", "Rounds in which a head drafted, by row.", ["head"], registry=registry)
        accepted = Counter(
            "mhc_accepted_tokens", "Draft tokens of a head that were accepted.", ["head"], registry=registry
        )
        self.drafted = [drafted.labels(str(head)) for head in range(heads)]
        self.accepted = [accepted.labels(str(head)) for head in range(heads)]
        self.cancelled = Counter(
            "mhc_cancelled_answers", "Answers given up: client gone, stop string, timeout.", registry=registry
        )
        self.running = Gauge("mhc_running_answers", "Answers being decoded.", registry=registry)
        self.waiting = Gauge("mhc_waiting_answers", "Answers whose prompt is not read yet.", registry=registry)
        self.first_token = Histogram(
            "mhc_first_token_seconds", "From the request to the first token.", buckets=SECONDS, registry=registry
        )
        self.answer = Histogram(
            "mhc_answer_seconds", "From the request to the last token.", buckets=SECONDS, registry=registry
        )

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def count_round(self, levels: int, emitted: int) -> None:
        """One row's share of a round that drafted so many levels and emitted so many tokens."""
        self.steps.inc()
        self.generated_tokens.inc(emitted)
        for head in range(levels):
            self.drafted[head].inc()
            if head < emitted - 1:
                self.accepted[head].inc()
