"""What heads are worth: measured decoding, predicted acceptance, comparisons and MT-Bench."""
