"""What is measured on samples, scores and preferences: torchmetrics, exact on any number of processes."""
