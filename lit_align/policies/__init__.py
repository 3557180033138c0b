"""What is aligned: a denoiser with its encoders, decoder, noising process and reference; one file per model family."""
