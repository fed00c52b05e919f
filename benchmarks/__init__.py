"""Speed, as ratios from one run."""
