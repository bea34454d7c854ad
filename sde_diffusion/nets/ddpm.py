"""The U-Net of Ho et al. 2020 as it was published, for its trained weights."""

from collections.abc import Mapping, Sequence
from functools import partial

from sde_diffusion.core.sizes import Size
from sde_diffusion.nets.backbone import Backbone, Design, at_resolutions
from sde_diffusion.nets.blocks import GroupNorm
from sde_diffusion.nets.embedding import Conditioning


class DDPM(Backbone):
    """DDPM's network: 32 groups, sinusoids down to the frequency 1/10000, strided convolutions padded as TensorFlow's.

    With in_channels=3, image_size=32 the defaults are those of CIFAR-10, 35.7 million parameters.
    convolutions: sizes change by convolutions, instead of by means and nearest neighbours
    last_attention: on the way up attention follows the last block of a level only, as in score_sde_pytorch
    Shapes and errors as those of `Backbone`. Source: Ho et al. 2020, appendix B, and their code.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        image_size: Size,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        convolutions: bool = True,
        last_attention: bool = False,
        num_classes: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            Conditioning(channels, 4 * channels, shift=1, num_classes=num_classes, vectors=vectors),
            in_channels=in_channels,
            out_channels=out_channels,
            image_size=image_size,
            stem=channels,
            channels=[channels * multiple for multiple in multipliers],
            blocks=blocks,
            attention=at_resolutions(image_size, len(multipliers), attention_resolutions),
            heads=lambda _: 1,
            dropout=dropout,
            design=Design(
                norm=partial(GroupNorm, groups=32),
                resampling="conv" if convolutions else "pool",
                same_padding=True,
                last_attention=last_attention,
            ),
        )
