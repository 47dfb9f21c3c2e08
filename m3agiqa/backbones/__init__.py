"""Local multimodal language models that describe and encode images; see `base.Backbone`."""
