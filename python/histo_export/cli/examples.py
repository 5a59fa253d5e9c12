"""Lines that people can copy: shown by `histo` alone, at the end of each command's help, and in error messages."""

FIRST_STEPS = {
    "histo export": "train on synthetic tiles for a minute, export the model and check every file",
    "histo export --data tiles/ --pool 2 --mpp 0.5": "the same with your tiles: tiles/<class>/*.png",
    "histo predict bundles/tiles-pool2 slides/": "classify tiles and whole slides with the exported model",
    "histo doctor": "show what works on this machine",
}
"""What a newcomer needs: a line, and what it does."""

EXAMPLES = {
    "export": (
        "histo export --data tiles/ --pool 2 --mpp 0.5",
        "histo export runs/tiles-pool2",
        "histo export --study study",
        "histo export --checkpoint runs/tiles-pool2/best.ckpt --formats all",
        "histo export --data tiles/ --precision int8 --out bundles/small",
        "histo export --weights w.pth --classes A,B --mean imagenet --std imagenet",
    ),
    "train": (
        "histo train tiles/ --pool 2 --mpp 0.5",
        "histo train --resume runs/tiles-pool2",
        "histo train --data tiles/ --classes TUMOR,STROMA --weights imagenet",
        "histo train --data tiles.npy --epochs 30 --batch 64 --device cuda",
        "histo train tiles.zip --class-map classes.csv",
    ),
    "study": (
        "histo study tiles/ --pools 1,2,4,8",
        "histo study --data demo --quick",
        "histo study --data tiles/ --recipes strong,report --budget 4h",
    ),
    "verify": ("histo verify bundles/tiles-pool2", "histo verify bundles/tiles-pool2 --device cuda --json"),
    "bench": (
        "histo bench bundles/tiles-pool2",
        "histo bench bundles/tiles-pool2 --runtimes native,onnxruntime --batches 1,32",
        "histo bench --pools 1,2,4 --precision fp32,int8 --out bench-pools",
        "histo bench bundles/tiles-pool2 --runtimes native --stages",
    ),
    "predict": (
        "histo predict bundles/tiles-pool2 slides/ --out results",
        "histo predict bundles/tiles-pool2 slide.svs --overlap 0.5 --precision bf16",
        "histo predict bundles/tiles-pool2 slide.tif --mpp 0.5 --runtime onnxruntime",
        "histo predict bundles/tiles-pool2 slides/ --coords patches/",
        "histo predict bundles/tiles-pool2 slides/ --roi annotations/",
        "histo predict bundles/tiles-pool2 tiles.zip --class-map classes.csv",
        "histo predict hf://org/name@v2 slides/",
        "histo predict bundles/tiles-pool2 slides/ --precision auto",
    ),
    "serve": (
        "histo serve bundles/tiles-pool2",
        "histo serve bundles/tiles-pool2 bundles/tiles-pool4 --port 9000",
        "histo serve bundles/tiles-pool2 --host 0.0.0.0 --token-file token.txt",
    ),
    "inspect": (
        "histo inspect bundles/tiles-pool2",
        "histo inspect bundles/tiles-pool2 --plan throughput",
        "histo inspect runs/tiles-pool2/best.ckpt --json",
        "histo inspect --pool 8 --classes 6",
    ),
    "push": (
        "histo push bundles/tiles-pool2 org/name --create --private",
        "histo push bundles/tiles-pool2 org/name --revision v2",
    ),
    "data": (
        "histo data",
        "histo data kather2016",
        "histo data --verify",
        "histo data --remove nct-crc-he",
    ),
    "doctor": ("histo doctor", "histo doctor --json", "histo doctor --speed bundles/tiles-pool2"),
}
"""Of each command; the first line is the simplest."""
