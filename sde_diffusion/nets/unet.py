"""The toolkit's own U-Net: that of Ho et al. 2020 (DDPM), for images of any size and channel count."""

from collections.abc import Mapping, Sequence

from sde_diffusion.core.sizes import Size
from sde_diffusion.nets.backbone import Backbone, Design, at_resolutions
from sde_diffusion.nets.embedding import Conditioning


class UNet(Backbone):
    """A convolutional network of (x, c_noise, class) whose output starts at exactly zero.

    Level l works at image_size / 2^l, pixels a side of a square or (height, width), with channels * multipliers[l]
    channels and `blocks` residual blocks on the way down, one more on the way up. Self-attention follows each block at
    the attention resolutions (pixels of the shorter side; those that no level has are ignored) and sits in the middle.
    Skips are concatenated. With in_channels=3, image_size=32 and dropout=0.1 the defaults are DDPM's for CIFAR-10.

    Shapes: x [B, in_channels, H, W], c_noise [B], labels int64 [B] (num_classes, or None for all, means "no
    class") -> [B, out_channels, H, W] in channels_last, with out_channels = in_channels unless given.
    Raises UserError for a size that the levels do not divide, heads that do not divide the channels, an
    unknown embedding, and in forward for x, c_noise or labels of another shape.
    Source: Ho et al. 2020, appendix B.
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
        heads: int = 1,
        dropout: float = 0.0,
        embedding: str = "positional",
        fourier_scale: float = 16.0,
        num_classes: int = 0,
        augment_dims: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            Conditioning(
                channels,
                4 * channels,
                embedding=embedding,
                fourier_scale=fourier_scale,
                num_classes=num_classes,
                augment_dims=augment_dims,
                vectors=vectors,
            ),
            in_channels=in_channels,
            out_channels=out_channels,
            image_size=image_size,
            stem=channels,
            channels=[channels * multiple for multiple in multipliers],
            blocks=blocks,
            attention=at_resolutions(image_size, len(multipliers), attention_resolutions),
            heads=lambda _: heads,
            dropout=dropout,
            design=Design(),
        )
