"""The Compare tab: several images of one prompt, in order, and which of them a person likes best."""
