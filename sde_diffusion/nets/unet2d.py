"""The UNet2DModel of diffusers, with the options of its DDPM and ADM families."""

from collections.abc import Mapping, Sequence
from functools import partial

from sde_diffusion.core.sizes import Size
from sde_diffusion.nets.backbone import Backbone, Design, heads_of
from sde_diffusion.nets.blocks import GroupNorm
from sde_diffusion.nets.embedding import Conditioning
from sde_diffusion.nets.initialisation import uniform_fan_in


class UNet2D(Backbone):
    """diffusers' U-Net, whose levels are listed one by one.

    channels            of each level
    attention, up_attention: for each level, from the image's size down, whether attention follows its blocks
    head_channels       of each attention head; 0 for one head
    groups, eps         of the normalisations
    shift, cosine_first: of the sinusoidal features, see `positional`
    same_padding        a strided convolution has its zeros at the right and bottom only (downsample_padding=0)
    resample_blocks     sizes change inside residual blocks
    The defaults are those of google/ddpm-cifar10-32. Shapes and errors as those of `Backbone`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        image_size: Size,
        channels: Sequence[int] = (128, 256, 256, 256),
        blocks: int = 2,
        attention: Sequence[bool] = (False, True, False, False),
        up_attention: Sequence[bool] = (False, True, False, False),
        head_channels: int = 0,
        groups: int = 32,
        eps: float = 1e-6,
        shift: int = 1,
        cosine_first: bool = False,
        same_padding: bool = True,
        scale_shift: bool = False,
        resample_blocks: bool = False,
        middle_attention: bool = True,
        dropout: float = 0.0,
        num_classes: int = 0,
        no_class: bool = False,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            Conditioning(
                channels[0],
                4 * channels[0],
                shift=shift,
                cosine_first=cosine_first,
                num_classes=num_classes,
                no_class=no_class,
                vectors=vectors,
            ),
            in_channels=in_channels,
            out_channels=out_channels,
            image_size=image_size,
            stem=channels[0],
            channels=channels,
            blocks=blocks,
            attention=attention,
            up_attention=up_attention,
            heads=heads_of(head_channels),
            dropout=dropout,
            design=Design(
                norm=partial(GroupNorm, groups=groups, eps=eps),
                scale_shift=scale_shift,
                resampling="block" if resample_blocks else "conv",
                same_padding=same_padding,
                middle_attention=middle_attention,
            ),
        )
        uniform_fan_in(self)
