"""A local page that follows runs, live or finished, and steers those that let it."""
