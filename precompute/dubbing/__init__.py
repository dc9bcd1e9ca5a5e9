"""Visual dubbing: the same video with other words."""
