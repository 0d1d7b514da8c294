"""What hostile or broken neighbours do, and what must not come of it."""
