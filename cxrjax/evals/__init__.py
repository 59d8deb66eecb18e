"""What an encoder learned, judged with few labels: kNN, linear probe, pixel floor, health."""
