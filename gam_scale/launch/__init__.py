"""Jobs on clusters: rendering, submitting, following and listing them."""
