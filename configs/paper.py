"""The experiments of "Learning to Segment Every Thing" (Hu et al., CVPR 2018), and some beyond, row by row.

    python train.py --config=configs/paper.py:row=2/r50_maskx,masks=voc --config.data.directory=DATA \\
        --config.initialize.path=R-50.pkl --workdir=RUN
    python -m tools.sweep --table=1a --masks=voc --output=SWEEP -- --config.data.directory=DATA

A row is `table/name`; `ROWS` lists them with the paper's mask AP on B, recalled rather than verified, and no row has
been run on the whole of COCO here. The paper trained on COCO 2014 trainval35k with 8 GPUs and 16 images a step.

Rows of `mask_rcnn/...` are the ablations of "Mask R-CNN" (He et al., ICCV 2017), with masks of all classes and its mask
AP on minival over all of them.

Variants: row; masks (voc, nonvoc: which classes have masks); size (full, tiny, lite: tiny is the small
network and synthetic images, lite a pretrained small backbone and a few hundred real pictures).
Stage-wise rows (tables 1a to 1c, fig3, most of beyond) train the mask branch on a frozen detector:
config.initialize.path is a run of the row `detector`. The row with GloVe vectors needs config.embedding.path.
"""

import dataclasses
import operator
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import base, embedmask, variants
from configs.families import rcnn

DETECTOR = "detector"


@dataclasses.dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
      predictor: "transfer", "class_agnostic", or "class_specific" with the masks of all classes (the oracle); of Mask
        R-CNN also "multinomial" and "none".
      embedmask: in place of a two-stage detector, the form of EmbedMask: "ijcai" or "arxiv", class-agnostic or with
        transfer.
      stage_wise: whether only the mask branch is trained, on a frozen detector.
      mlp: whether the MLP branch is fused.
      transfer: fields of T.
      gt_boxes: whether masks are trained on the objects' own boxes.
      deep: an 11-convolution residual mask head.
      box_losses: whether objects without masks learn masks from their boxes.
      boxes_alone: whether no class has masks, A neither; what is scored as A and B stays.
      hourglass: layers of an hourglass in place of the mask head's convolutions, 20 or 52; with `gt_boxes`.
      conv_box_head: whether the detector's box head is convolutions and a mean.
      class_prior: whether the mask head sees where in a region that box head sees its class.
      mlp_layers: hidden layers of 1,024 units that stand in place of the mask head's convolutions, where there are any.
      pooling: the operation that pools regions.
      people: whether the data are of people with keypoints; the tiny size marks its images.
      keypoints: whether they are found.
      partial: whether some classes have no masks: A and B. Without, all have masks and are scored together.
      backbone: one of `families.rcnn.BACKBONE_C4`; the tiny size has its own, but takes its form, FPN or C4.
      paper: the paper's mask AP on B by the choice of A; of Mask R-CNN on minival, over "all" classes.
    """

    predictor: str = "transfer"
    embedmask: str = ""
    stage_wise: bool = True
    mlp: bool = False
    transfer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gt_boxes: bool = False
    deep: bool = False
    box_losses: bool = False
    boxes_alone: bool = False
    hourglass: int = 0
    conv_box_head: bool = False
    class_prior: bool = False
    mlp_layers: int = 0
    pooling: str = "roi_align"
    people: bool = False
    keypoints: bool = False
    partial: bool = True
    backbone: str = "r50"
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def fits_lite(self) -> bool:
        """Whether it has the size lite: two stages on a pyramid, whatever the backbone."""
        return not self.embedmask and not self.backbone.endswith("_c4")

    @property
    def is_oracle(self) -> bool:
        """Whether it has the masks that the others are without."""
        return self.partial and self.predictor == "class_specific"

    @property
    def has_own_masks(self) -> bool:
        """Whether it learns from the same masks whichever classes are chosen as A."""
        return self.is_oracle or self.boxes_alone

    def oracles(self, names: Collection[str]) -> list[str]:
        """Return the rows among some that are its oracle: of the same detector and the same mask head.

        Where there is none of the same mask head, those of a plain one are.
        """
        detector = operator.attrgetter("stage_wise", "backbone", "pooling", "people", "keypoints", "conv_box_head")
        head = operator.attrgetter("gt_boxes", "deep", "hourglass", "mlp_layers", "class_prior")
        found = [name for name in names if ROWS[name].is_oracle and detector(ROWS[name]) == detector(self)]
        same = [name for name in found if head(ROWS[name]) == head(self)]
        return same or [name for name in found if not any(head(ROWS[name]))]

    def published(self, masks: str) -> float | None:
        """Return the paper's number for a choice of A; "" is the row's own choice, which stands first."""
        return self.paper.get(masks or next(iter(self.paper), ""))


def _paper(voc: float, nonvoc: float) -> dict[str, float]:
    """Return AP on B where VOC's classes have masks, and where the others have."""
    return {"voc": voc, "nonvoc": nonvoc}


def _end_to_end(predictor: str, voc: float, nonvoc: float, backbone: str = "r50", **fields: Any) -> Row:
    return Row(predictor, stage_wise=False, backbone=backbone, paper=_paper(voc, nonvoc), **fields)


def _conv(predictor: str, **fields: Any) -> Row:
    # End to end, as OPMask: its box head's maps learn from masks.
    return Row(predictor, stage_wise=False, conv_box_head=True, **fields)


def _embedmask(form: str, predictor: str) -> Row:
    return Row(predictor, embedmask=form, stage_wise=False)


def _mask_rcnn(ap: float | None, predictor: str = "class_specific", **fields: Any) -> Row:
    paper = {} if ap is None else {"all": ap}
    return Row(predictor, stage_wise=False, partial=False, paper=paper, **fields)


def _c4(ap: float, predictor: str = "class_specific", **fields: Any) -> Row:
    return _mask_rcnn(ap, predictor, backbone="r50_c4", **fields)


_AGNOSTIC = Row("class_agnostic", paper=_paper(14.2, 21.5))
_TRANSFER = Row(paper=_paper(20.2, 26.0))
_ORACLE = Row("class_specific", paper=_paper(30.7, 35.0))
_SMALL_INIT = {"init_scale": rcnn.SMALL_INIT}
_AGNOSTIC_END_TO_END = _end_to_end("class_agnostic", 19.2, 23.9)
_TRANSFER_END_TO_END = _end_to_end("transfer", 22.2, 27.6)
_ORACLE_END_TO_END = _end_to_end("class_specific", 33.0, 37.5)

ROWS: dict[str, Row] = {
    # What T sees.
    "1a/class_agnostic": _AGNOSTIC,
    "1a/random": Row(transfer={"input": "embedding"}, paper=_paper(15.4, 19.9)),
    "1a/glove": Row(transfer={"input": "embedding"}, paper=_paper(17.3, 21.9)),
    "1a/cls": Row(transfer={"input": "cls"}, paper=_paper(18.1, 25.2)),
    "1a/box": Row(transfer={"input": "box"}, paper=_paper(19.8, 25.7)),
    "1a/cls+box": Row(transfer={"input": "cls+box"}, paper=_paper(20.2, 26.0)),
    "1a/oracle": _ORACLE,
    # The structure of T.
    "1b/1_layer": Row(transfer={"num_layers": 1, "activation": "none"}, paper=_paper(19.2, 24.8)),
    "1b/2_layer_relu": Row(transfer={"activation": "relu"}, paper=_paper(19.7, 25.1)),
    "1b/2_layer_leaky_relu": _TRANSFER,
    "1b/3_layer_relu": Row(transfer={"num_layers": 3, "activation": "relu"}, paper=_paper(19.3, 25.2)),
    "1b/3_layer_leaky_relu": Row(transfer={"num_layers": 3}, paper=_paper(18.9, 25.0)),
    # The MLP branch.
    "1c/class_agnostic": _AGNOSTIC,
    "1c/class_agnostic_mlp": Row("class_agnostic", mlp=True, paper=_paper(17.1, 22.8)),
    "1c/transfer": _TRANSFER,
    "1c/transfer_mlp": Row(mlp=True, paper=_paper(21.3, 26.6)),
    # Stage-wise or end to end, and the stopped gradient.
    "1d/stage_wise_class_agnostic": _AGNOSTIC,
    "1d/stage_wise_transfer": _TRANSFER,
    "1d/end_to_end_class_agnostic": _AGNOSTIC_END_TO_END,
    "1d/end_to_end_transfer_flowing": _end_to_end("transfer", 20.2, 24.8, transfer={"stop_gradient": False}),
    "1d/end_to_end_transfer": _TRANSFER_END_TO_END,
    # The systems.
    "2/r50_class_agnostic": _AGNOSTIC_END_TO_END,
    "2/r50_maskx": _end_to_end("transfer", 23.7, 28.9, mlp=True),
    "2/r50_oracle": _ORACLE_END_TO_END,
    "2/r101_class_agnostic": _end_to_end("class_agnostic", 18.5, 24.7, "r101"),
    "2/r101_maskx": _end_to_end("transfer", 23.8, 29.5, "r101", mlp=True),
    "2/r101_oracle": _end_to_end("class_specific", 34.4, 39.1, "r101"),
    # AP on B as A grows: with --masks="random(1,20)" --masks="random(1,30)"... of tools.sweep.
    "fig3/class_agnostic": _AGNOSTIC,
    "fig3/transfer": _TRANSFER,
    # Beyond the paper.
    "beyond/class_agnostic": _AGNOSTIC,
    "beyond/class_agnostic_gt_boxes": Row("class_agnostic", gt_boxes=True),
    "beyond/class_agnostic_deep": Row("class_agnostic", deep=True),
    "beyond/class_agnostic_gt_boxes_deep": Row("class_agnostic", gt_boxes=True, deep=True),
    "beyond/class_agnostic_gt_boxes_hg20": Row("class_agnostic", gt_boxes=True, hourglass=20),
    "beyond/class_agnostic_gt_boxes_hg52": Row("class_agnostic", gt_boxes=True, hourglass=52),
    "beyond/transfer": _TRANSFER,
    "beyond/transfer_small_init": Row(transfer=_SMALL_INIT),
    "beyond/transfer_gt_boxes": Row(gt_boxes=True),
    "beyond/transfer_deep": Row(deep=True),
    "beyond/transfer_gt_boxes_deep": Row(gt_boxes=True, deep=True),
    "beyond/class_agnostic_box_losses": Row("class_agnostic", box_losses=True),
    "beyond/transfer_box_losses": Row(box_losses=True),
    "beyond/transfer_small_init_box_losses": Row(transfer=_SMALL_INIT, box_losses=True),
    "beyond/transfer_deep_box_losses": Row(deep=True, box_losses=True),
    "beyond/transfer_gt_boxes_deep_box_losses": Row(gt_boxes=True, deep=True, box_losses=True),
    "beyond/class_agnostic_boxes_alone": Row("class_agnostic", box_losses=True, boxes_alone=True),
    "beyond/transfer_boxes_alone": Row(box_losses=True, boxes_alone=True),
    "beyond/transfer_gt_boxes_hg20": Row(gt_boxes=True, hourglass=20),
    "beyond/transfer_gt_boxes_hg52": Row(gt_boxes=True, hourglass=52),
    "beyond/transfer_gt_boxes_hg20_box_losses": Row(gt_boxes=True, hourglass=20, box_losses=True),
    "beyond/oracle": _ORACLE,
    "beyond/oracle_gt_boxes_hg20": Row("class_specific", gt_boxes=True, hourglass=20),
    "beyond/oracle_gt_boxes_hg52": Row("class_specific", gt_boxes=True, hourglass=52),
    "beyond/class_agnostic_conv": _conv("class_agnostic"),
    "beyond/class_agnostic_prior": _conv("class_agnostic", class_prior=True),
    "beyond/class_agnostic_deep_prior": _conv("class_agnostic", class_prior=True, deep=True),
    "beyond/class_agnostic_prior_box_losses": _conv("class_agnostic", class_prior=True, box_losses=True),
    "beyond/transfer_conv": _conv("transfer"),
    "beyond/transfer_prior": _conv("transfer", class_prior=True),
    "beyond/transfer_prior_box_losses": _conv("transfer", class_prior=True, box_losses=True),
    "beyond/oracle_conv": _conv("class_specific"),
    "beyond/oracle_prior": _conv("class_specific", class_prior=True),
    # Two stages and one, end to end.
    "one_stage/class_agnostic": _AGNOSTIC_END_TO_END,
    "one_stage/maskx": _TRANSFER_END_TO_END,
    "one_stage/oracle": _ORACLE_END_TO_END,
    "one_stage/embedmask_ijcai": _embedmask("ijcai", "class_agnostic"),
    "one_stage/embedmask_arxiv": _embedmask("arxiv", "class_agnostic"),
    "one_stage/embedmask_ijcai_transfer": _embedmask("ijcai", "transfer"),
    "one_stage/embedmask_arxiv_transfer": _embedmask("arxiv", "transfer"),
    # Mask R-CNN: backbones;
    "mask_rcnn/2a/r50_c4": _c4(30.3),
    "mask_rcnn/2a/r101_c4": _mask_rcnn(32.7, backbone="r101_c4"),
    "mask_rcnn/2a/r50": _mask_rcnn(33.6),
    "mask_rcnn/2a/r101": _mask_rcnn(35.4, backbone="r101"),
    "mask_rcnn/2a/x101_64x4d": _mask_rcnn(36.7, backbone="x101_64x4d"),
    # classes that compete for pixels, or do not, or share one mask;
    "mask_rcnn/2b/multinomial": _c4(24.8, "multinomial"),
    "mask_rcnn/2b/sigmoid": _c4(30.3),
    "mask_rcnn/2b/class_agnostic": _c4(29.7, "class_agnostic"),
    # how regions are pooled;
    "mask_rcnn/2c/roi_pool": _c4(26.9, pooling="roi_pool"),
    "mask_rcnn/2c/roi_warp_max": _c4(27.2, pooling="roi_warp_max"),
    "mask_rcnn/2c/roi_warp": _c4(27.1, pooling="roi_warp"),
    "mask_rcnn/2c/roi_align_max": _c4(30.2, pooling="roi_align_max"),
    "mask_rcnn/2c/roi_align": _c4(30.3),
    # fully connected layers, or convolutions;
    "mask_rcnn/2e/mlp_2": _mask_rcnn(31.5, mlp_layers=2),
    "mask_rcnn/2e/mlp_3": _mask_rcnn(31.5, mlp_layers=3),
    "mask_rcnn/2e/fcn": _mask_rcnn(33.6),
    # boxes without masks, and with: 37.3 and 38.2 box AP on test-dev.
    "mask_rcnn/3/faster_rcnn": _mask_rcnn(None, "none", backbone="r101"),
    "mask_rcnn/3/mask_rcnn": _mask_rcnn(35.4, backbone="r101"),
    # Boxes, masks and keypoints of people: 52.5, 53.6, 50.7 and 52.0 box AP on minival, 64.2 and 64.7 of keypoints.
    "mask_rcnn/5/faster_rcnn": _mask_rcnn(None, "none", people=True),
    "mask_rcnn/5/mask": _mask_rcnn(45.8, people=True),
    "mask_rcnn/5/keypoint": _mask_rcnn(None, "none", people=True, keypoints=True),
    "mask_rcnn/5/keypoint_mask": _mask_rcnn(45.1, people=True, keypoints=True),
}


def tables() -> dict[str, list[str]]:
    """Return the names of the rows of each table."""
    result: dict[str, list[str]] = {}
    for name in ROWS:
        result.setdefault(name.rpartition("/")[0], []).append(name)
    return result


def same_experiment(row: str, size: str) -> str:
    """Return the first row with the very config of this one: a row of several tables is run once."""
    config = get_config(f"row={row},size={size}").to_dict()
    names = [name for name in ROWS if size != "lite" or ROWS[name].fits_lite]
    return next(name for name in names if get_config(f"row={name},size={size}").to_dict() == config)


def get_config(argument: str | None = None) -> ConfigDict:
    """Return the config of a row."""
    config = rcnn.get_config()
    config.data.mask_classes = "voc"
    config.evaluation.mask_classes = "voc"
    config.train.best_metric = ("segm/B/AP", "segm/all/AP", "bbox/all/AP")
    config.model.rcnn.mask_head.targets = "sampled"

    def detector(config: ConfigDict) -> None:
        config.model.rcnn.mask_predictor = "none"

    rows = {name: _change(row) for name, row in ROWS.items()} | {DETECTOR: detector}
    sizes = {"full": lambda config: None, "tiny": tiny, "lite": lite}
    masks = {name: _masks(name) for name in ("voc", "nonvoc")}
    # The classes with masks are set before a row, because the oracle's masks are those of all classes.
    return base.apply_variants(
        config, argument, {"size": sizes, "masks": masks, "row": rows}, {"size=tiny": ("masks",)}
    )


def tiny(config: ConfigDict) -> None:
    """The small network on synthetic images of 60 categories, 50 of them with masks."""
    rcnn.tiny(config)
    variants.shapes(config)
    config.data.shapes.update(num_hues=10, num_textures=6, num_train=4000, num_eval=200)
    config.data.mask_classes = config.evaluation.mask_classes = "random(1,50)"
    config.train.update(num_steps=1600, eval_every=1600, checkpoint_every=400)
    # A category there is a colour and a texture: box regression knows neither.
    config.model.rcnn.weight_transfer.input = "cls"


def lite(config: ConfigDict) -> None:
    """Small heads on a pretrained backbone; config.initialize.path of the row `detector` names its weights."""
    rcnn.lite(config)
    config.train.eval_every = config.train.num_steps


def _masks(name: str) -> variants.Change:
    def change(config: ConfigDict) -> None:
        config.data.mask_classes = config.evaluation.mask_classes = name

    return change


def _change(row: Row) -> variants.Change:
    def change(config: ConfigDict) -> None:
        model = config.model.rcnn
        small, is_lite = rcnn.is_small(config), config.model.backbone.kind == "efficientnet_lite"
        if is_lite and not row.fits_lite:
            raise ValueError("got size=lite for a row of EmbedMask or C4; expected one of two stages on a pyramid")
        if row.embedmask:
            variant = f"form={row.embedmask},transfer={'on' if row.predictor == 'transfer' else 'off'}"
            system = embedmask.get_config(f"{variant},size={'tiny' if small else 'full'}")
            config.model = system.model
            config.optimizer.learning_rate = system.optimizer.learning_rate
            for name in ("mask_threshold", "picture_score_threshold"):
                config.evaluation[name] = system.evaluation[name]
            return
        if not small:
            rcnn.BACKBONE_C4[row.backbone](config)
        elif row.backbone.endswith("_c4"):
            rcnn.c4(config)
        model.mask_predictor = row.predictor
        # At every size T begins as the paper's, unless the row says otherwise.
        model.weight_transfer.update({"init_scale": 1.0, **row.transfer})
        if row.mlp:
            model.mask_head.mlp = "light" if small else "paper"
        if row.gt_boxes:
            model.mask_head.train_on = "gt_boxes"
        if row.deep:
            model.mask_head.update(body="residual", num_convs=11)
        if row.hourglass:
            rcnn.hourglass(row.hourglass)(config)
        if row.conv_box_head:
            rcnn.conv_box_head(config)
        if row.class_prior:
            rcnn.class_prior(config)
        if row.mlp_layers:
            model.mask_head.update(body="mlp", num_convs=row.mlp_layers, channels=256 if small else 1024)
        model.roi_align.operation = row.pooling
        if row.keypoints:
            model.keypoint_predictor = "heatmaps"
        if row.people and config.data.source == "shapes":
            config.data.shapes.keypoints, model.keypoint_head.num_keypoints = True, 5
        if row.is_oracle:
            config.data.mask_classes = "all"
        if row.boxes_alone:
            config.data.mask_classes = "none"
            # No region has a mask to be trained on.
            model.mask_head.num_samples = 1
        if not row.partial:
            config.data.mask_classes, config.evaluation.mask_classes = "all", None
        if row.stage_wise:
            config.optimizer.untrained = ("(backbone|fpn|rpn|box_head)/.*",)
            config.initialize.new = ("(mask_head|mask_weights)/.*",)
            if small:
                # Enough for two convolutions on features that stand still.
                config.train.update(num_steps=600, eval_every=600)
        if row.box_losses:
            rcnn.box_losses(config)

    return change
