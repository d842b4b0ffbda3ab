"""The quality watch: the stage that judges comparisons, and the follower of its verdicts."""
