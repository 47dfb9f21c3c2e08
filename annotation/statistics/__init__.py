"""What the opinions of many people say together: agreement, mean opinion scores, who does how much."""
