"""The Annotate tab, for people who judge a hundred images in a row, and the same work over HTTP."""
