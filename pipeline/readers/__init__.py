"""One module per dataset: which files belong together, and which split they officially belong to."""
