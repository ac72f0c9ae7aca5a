"""What an edit does: losses, texts, answers."""
