"""What runs in a side: a fresh process with one tool. What it imports is part of what its forks cost."""
