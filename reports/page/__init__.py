"""One HTML file that people explore: leaderboard, comparison and records, without a network."""
