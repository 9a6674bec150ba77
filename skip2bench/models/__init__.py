"""Base models, the methods' models, Skip adapters, losses, adapters on disk."""
