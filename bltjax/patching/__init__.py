"""From bytes to patches: pure functions with static shapes and no parameters."""

from bltjax.patching.patches import Patches, byte_documents, patch_documents

__all__ = ["Patches", "byte_documents", "patch_documents"]
