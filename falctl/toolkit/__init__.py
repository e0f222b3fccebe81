"""What an app may use besides `falctl.App`: images, a model cache, and the errors a client understands."""

from falctl.core.activations import Drawing
from falctl.errors import BadRequestError, NotFoundError, RequestError
from falctl.toolkit.cancel import RequestCancelled
from falctl.toolkit.files import File, Image, encode_image
from falctl.toolkit.model_cache import ModelCache
from falctl.toolkit.model_source import ModelSource, lora_adapter, name_with_loras

__all__ = [
    "BadRequestError",
    "Drawing",
    "File",
    "Image",
    "ModelCache",
    "ModelSource",
    "NotFoundError",
    "RequestCancelled",
    "RequestError",
    "encode_image",
    "lora_adapter",
    "name_with_loras",
]
