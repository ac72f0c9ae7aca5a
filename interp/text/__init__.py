"""Text in, tokens out: languages, sources, corpora, tasks."""
