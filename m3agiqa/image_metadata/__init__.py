"""The prompt that an image generator wrote into its image file.

`places` takes texts out of a file, `generators` is the table of what each generator writes where, and
`comfyui` follows the graphs of one of them.
"""

from m3agiqa.image_metadata.embedded_prompt import LEFT_OUT, EmbeddedPrompt, find_prompt, shared_prompt

__all__ = ["LEFT_OUT", "EmbeddedPrompt", "find_prompt", "shared_prompt"]
