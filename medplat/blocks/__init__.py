"""Network parts that two or more plugins share."""
