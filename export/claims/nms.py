"""Non-maximum suppression as ONNX graphs: of proposals, of each class separately, of all classes at once.

Written in ONNX's text form, because the exporter has no operator whose output length depends on the data.
Source: the extraction loop of peteanderson80/bottom-up-attention and its ports: suppress in each class, give every box
its best score among the classes that kept it, take the boxes with the highest.
"""

import onnx
import onnx.parser

from export.claims.step import OPSET

IR_VERSION = 10
PROPOSAL_IOU = 0.7  # detectron2 RPN.NMS_THRESH
CLASS_IOU = 0.3  # bottom-up-attention
AGNOSTIC_IOU = 0.5  # detectron2 ROI_HEADS.NMS_THRESH_TEST
SUPPRESS = """
    axis = Constant <value_ints = [0]> ()
    iou = Constant <value_float = {iou}> ()
    limit = Constant <value_int = {limit}> ()
    batched_boxes = Unsqueeze (boxes, axis)
    batched_scores = Unsqueeze (scores, axis)
    selected = NonMaxSuppression (batched_boxes, batched_scores, limit, iou, {threshold})
"""
KEEP = """
    class_and_box = Constant <value_ints = [1, 2]> ()
    box = Constant <value_ints = [2]> ()
    wanted = Constant <value_ints = [{kept}]> ()
    pairs = Gather <axis = 1> (selected, class_and_box)
    rows = Gather <axis = 1> (selected, box)
    found = GatherND (scores, pairs)
    boxes_shape = Shape <end = 1> (boxes)
    nothing = ConstantOfShape (boxes_shape)
    confidence = ScatterND <reduction = "max"> (nothing, rows, found)
    highest, kept = TopK (confidence, wanted)
"""


def proposals(limit: int) -> onnx.ModelProto:
    """Keep at most so many proposals, best first.

    Shapes: candidate_boxes (N, 4), candidate_scores (N,) -> proposal_rows (at most limit,).
    """
    body = """
    row = Constant <value_ints = [0]> ()
    last = Constant <value_int = 2> ()
    scores = Unsqueeze (candidate_scores, row)
    boxes = Identity (candidate_boxes)
    threshold = Constant <value_float = -1e9> ()
    """
    body += SUPPRESS.format(iou=PROPOSAL_IOU, limit=limit, threshold="threshold")
    body += "proposal_rows = Gather <axis = 1> (selected, last)\n"
    return _parse("float[N, 4] candidate_boxes, float[N] candidate_scores", "int64[K] proposal_rows", body)


def per_class(kept: int) -> onnx.ModelProto:
    """Suppress in each class apart, then keep the boxes of the highest scores.

    Shapes: proposals (N, 4), class_scores (N, classes), score_threshold (1,) -> kept (kept,), rows of proposals.
    """
    body = "scores = Transpose <perm = [1, 0]> (class_scores)\n"
    body += SUPPRESS.format(iou=CLASS_IOU, limit=2**31 - 1, threshold="score_threshold") + KEEP.format(kept=kept)
    return _detections(kept, body)


def class_agnostic(kept: int) -> onnx.ModelProto:
    """Suppress all boxes together by their best class.

    Shapes: as per_class.
    """
    body = """
    classes = Constant <value_ints = [1]> ()
    best = ReduceMax <keepdims = 1> (class_scores, classes)
    scores = Transpose <perm = [1, 0]> (best)
    """
    body += SUPPRESS.format(iou=AGNOSTIC_IOU, limit=2**31 - 1, threshold="score_threshold") + KEEP.format(kept=kept)
    return _detections(kept, body)


def _detections(kept: int, body: str) -> onnx.ModelProto:
    body = "boxes = Identity (proposals)\n" + body
    inputs = "float[N, 4] proposals, float[N, C] class_scores, float[1] score_threshold"
    return _parse(inputs, f"int64[{kept}] kept", body)


def _parse(inputs: str, outputs: str, body: str) -> onnx.ModelProto:
    header = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>'
    model = onnx.parser.parse_model(f"{header}\nnms ({inputs}) => ({outputs}) {{ {body} }}")
    onnx.checker.check_model(model)
    return model
