"""What a person looks at after a run: the page, the plots and the logs they are made from."""
