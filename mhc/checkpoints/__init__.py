"""What lies on disk: the folder that heads live in, and the file that a training run resumes from."""
