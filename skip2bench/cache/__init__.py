"""Skip-Cache: its arrays, how they are built, kept, planned, and what their loss is."""
