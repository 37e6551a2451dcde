"""A layer as a policy sees it: candidates, errors, costs."""
