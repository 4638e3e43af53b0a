"""Contact sheets, films, and pictures of where the gaze went and what merged."""
