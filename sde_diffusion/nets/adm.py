"""The U-Net of improved- and guided-diffusion (Nichol & Dhariwal 2021; Dhariwal & Nichol 2021), and EDM's version."""

from collections.abc import Mapping, Sequence
from functools import partial

from sde_diffusion.core.sizes import Size
from sde_diffusion.nets.backbone import Backbone, Design, at_resolutions, heads_of
from sde_diffusion.nets.blocks import GroupNorm
from sde_diffusion.nets.embedding import Conditioning
from sde_diffusion.nets.initialisation import uniform_fan_in


class ADM(Backbone):
    """Improved- and guided-diffusion's network: scale-shift norm, attention of many heads, a class always given.

    attention_factors: by how much the image has been halved where there is attention, such as (2, 4)
    heads, head_channels: number of heads, or, if not 0, the channels of each
    resample_blocks: sizes change inside residual blocks (guided-diffusion's ablation of BigGAN's blocks)
    wide_stem: the stem has channels * multipliers[0] channels, as in guided-diffusion
    no_class: whether there is a row for "no class"; the published networks have none
    With a learned variance out_channels is 2 in_channels. The defaults are improved-diffusion's for CIFAR-10.
    Shapes and errors as those of `Backbone`.
    Source: Nichol & Dhariwal 2021, appendix A; Dhariwal & Nichol 2021, section 3.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        image_size: Size,
        channels: int = 128,
        multipliers: Sequence[float] = (1, 2, 2, 2),
        blocks: int = 3,
        attention_factors: Sequence[int] = (2, 4),
        heads: int = 4,
        head_channels: int = 0,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample_blocks: bool = False,
        convolutions: bool = True,
        wide_stem: bool = False,
        num_classes: int = 0,
        no_class: bool = False,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        widths = [int(channels * multiple) for multiple in multipliers]
        super().__init__(
            Conditioning(
                channels,
                4 * channels,
                cosine_first=True,
                num_classes=num_classes,
                no_class=no_class,
                vectors=vectors,
            ),
            in_channels=in_channels,
            out_channels=out_channels,
            image_size=image_size,
            stem=widths[0] if wide_stem else channels,
            channels=widths,
            blocks=blocks,
            attention=[2**level in attention_factors for level in range(len(widths))],
            heads=heads_of(head_channels, heads),
            dropout=dropout,
            design=Design(
                norm=partial(GroupNorm, groups=32, eps=1e-5),
                scale_shift=scale_shift,
                resampling="block" if resample_blocks else "conv" if convolutions else "pool",
            ),
        )
        uniform_fan_in(self)


class DhariwalUNet(Backbone):
    """ADM as Karras et al. 2022 rebuilt it: with class rows after, and augmentation labels before, c_noise's layers.

    Attention has heads of 64 channels, and none where a level has fewer than 64 channels, as in its source. The
    defaults are those of ImageNet-64. Shapes and errors as those of `Backbone`.
    Source: Dhariwal & Nichol 2021, section 3; Karras et al. 2022, appendix F.1.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        image_size: Size,
        channels: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        blocks: int = 3,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        num_classes: int = 0,
        augment_dims: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        widths = [channels * multiple for multiple in multipliers]
        super().__init__(
            Conditioning(
                channels,
                4 * channels,
                cosine_first=True,
                num_classes=num_classes,
                augment_dims=augment_dims,
                vectors=vectors,
            ),
            in_channels=in_channels,
            out_channels=out_channels,
            image_size=image_size,
            stem=widths[0],
            channels=widths,
            blocks=blocks,
            attention=at_resolutions(image_size, len(widths), attention_resolutions),
            heads=lambda width: width // 64,
            dropout=dropout,
            design=Design(norm=partial(GroupNorm, eps=1e-5), scale_shift=True, resampling="block"),
        )
        uniform_fan_in(self)
