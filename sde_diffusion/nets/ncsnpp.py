"""DDPM++ and NCSN++ (Song et al. 2021, appendix H), and the SongUNet of Karras et al. 2022, which is both.

They are one network under different settings: DDPM++ is told the noise level by sinusoids and changes sizes by nearest
neighbours and means; NCSN++ by Fourier features of log sigma, changes sizes by a filter, and has a pyramid of the
input. The "deep" versions have eight blocks a level instead of four.
"""

from collections.abc import Mapping, Sequence

from sde_diffusion.core.sizes import Size
from sde_diffusion.nets.backbone import Backbone, Design, at_resolutions
from sde_diffusion.nets.embedding import Conditioning
from sde_diffusion.nets.resample import BINOMIAL


class SongUNet(Backbone):
    """The network of DDPM++ and NCSN++ with all its settings, and EDM's additions: classes and augmentation labels.

    big_blocks          sizes change inside residual blocks (BigGAN), instead of by convolutions
    rescale             sums of branches are multiplied by sqrt(1/2)
    taps                of the resampling filter; () for nearest neighbours and means
    input_pyramid, output_pyramid, combine: see `Design`
    features            sinusoidal or Fourier features, in multiples of channels
    num_classes, augment_dims: rows and labels that are added to those features (Karras et al. 2022)
    The defaults are those of EDM's DDPM++ for CIFAR-10. Shapes and errors as those of `Backbone`.
    Source: Song et al. 2021, appendices G and H; Karras et al. 2022, appendix F.1 and Table 7.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        image_size: Size,
        channels: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        embedding: str = "positional",
        features: int = 1,
        fourier_scale: float = 16.0,
        big_blocks: bool = True,
        convolutions: bool = True,
        rescale: bool = True,
        taps: Sequence[float] = (),
        input_pyramid: str = "none",
        output_pyramid: str = "none",
        combine: str = "sum",
        num_classes: int = 0,
        augment_dims: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            Conditioning(
                features * channels,
                4 * channels,
                embedding=embedding,
                fourier_scale=fourier_scale,
                shift=1,
                num_classes=num_classes,
                classes_first=True,
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
            heads=lambda _: 1,
            dropout=dropout,
            design=Design(
                rescale=rescale,
                resampling="block" if big_blocks else "conv" if convolutions else "pool",
                taps=tuple(taps) or None,
                same_padding=True,
                project=True,
                last_attention=True,
                input_pyramid=input_pyramid,
                output_pyramid=output_pyramid,
                combine=combine,
            ),
        )


class DDPMpp(SongUNet):
    """DDPM++ for CIFAR-10: 61.8 million parameters, 106.6 million with blocks=8 ("deep").

    Shapes and errors as those of `Backbone`. Source: Song et al. 2021, appendix H.2.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        image_size: Size,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        num_classes: int = 0,
        augment_dims: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            image_size=image_size,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            num_classes=num_classes,
            augment_dims=augment_dims,
            vectors=vectors,
        )


class NCSNpp(SongUNet):
    """NCSN++ for CIFAR-10: 62.8 million parameters, 107.6 million with blocks=8 ("deep").

    c_noise is log sigma. Shapes and errors as those of `Backbone`. Source: Song et al. 2021, appendix H.1.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        image_size: Size,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        fourier_scale: float = 16.0,
        taps: Sequence[float] = BINOMIAL,
        input_pyramid: str = "residual",
        output_pyramid: str = "none",
        num_classes: int = 0,
        augment_dims: int = 0,
        vectors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            image_size=image_size,
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            embedding="fourier",
            features=2,
            fourier_scale=fourier_scale,
            taps=taps,
            input_pyramid=input_pyramid,
            output_pyramid=output_pyramid,
            num_classes=num_classes,
            augment_dims=augment_dims,
            vectors=vectors,
        )
