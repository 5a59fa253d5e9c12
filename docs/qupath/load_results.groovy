/*
 * Loads the results of histo predict onto the images of a QuPath project (0.4 or newer).
 *
 * In QuPath: open the project, then Automate > Script editor, open this file, set RESULTS, Run (not "Run for project":
 * the script goes over all images itself). Close the images first, or reopen them afterwards, without saving.
 * Without a window: QuPath script --project=project.qpproj --args=/path/to/results load_results.groovy
 *
 * The results of slide.svs are in RESULTS/slide/tiles.geojson. An image is found by its name in the project or by the
 * name of its file, with or without suffix. Nothing else in the project is changed: tiles that this script loaded
 * before are replaced, because they have the same ids.
 */
import qupath.lib.io.PathIO

String RESULTS = "/path/to/results"

if (binding.hasVariable("args") && args) {
    RESULTS = args[0]
}
def results = new File(RESULTS)
if (!results.isDirectory()) {
    throw new IllegalArgumentException("${RESULTS} is not a folder. Set RESULTS to the --out of histo predict")
}
def project = getProject()
if (project == null) {
    throw new IllegalArgumentException("No project is open. Open one, or give --project")
}

def withoutSuffix = { String name -> name.contains(".") ? name.substring(0, name.lastIndexOf(".")) : name }

int loaded = 0
def missing = []
for (entry in project.getImageList()) {
    def names = [entry.getImageName()]
    for (uri in entry.getURIs()) {
        if (uri.getPath() != null) {
            names << new File(uri.getPath()).getName()
        }
    }
    names += names.collect(withoutSuffix)
    def file = names.collect { new File(new File(results, it), "tiles.geojson") }.find { it.isFile() }
    if (file == null) {
        missing << entry.getImageName()
        continue
    }
    def imageData = entry.readImageData()
    def hierarchy = imageData.getHierarchy()
    def tiles = PathIO.readObjects(file)
    def ids = tiles.collect { it.getID() } as Set
    hierarchy.removeObjects(hierarchy.getTileObjects().findAll { ids.contains(it.getID()) }, true)
    hierarchy.addObjects(tiles)
    entry.saveImageData(imageData)
    println "${entry.getImageName()}: ${tiles.size()} tiles of ${file}"
    loaded++
}
println "Results of ${loaded} images loaded" + (missing ? "; no results of ${missing.join(', ')}" : "")
