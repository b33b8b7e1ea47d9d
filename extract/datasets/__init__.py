"""Lists of videos and classes, official and of one's own."""
