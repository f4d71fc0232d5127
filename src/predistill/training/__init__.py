"""What one training run needs: the step, the optimizer, checkpoints, running means. The loop is in stages/train.py."""
