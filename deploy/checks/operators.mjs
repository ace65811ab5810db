// Resources of the Prometheus operator and of KEDA, against what these publish of them.
//
//   node operators.mjs RESOURCES.json        # as manifests.py wrote them
//
// Twice, for each sees what the other does not: values (patterns, bounds) by their JSON schemas,
// and fields that nobody knows by their types.

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { TriggerAuthentication } from "@kubernetes-models/keda/keda.sh/v1alpha1/TriggerAuthentication";
import { PodMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor";

const known = {
  ScaledObject: { model: ScaledObject, module: "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject" },
  TriggerAuthentication: {
    model: TriggerAuthentication,
    module: "@kubernetes-models/keda/keda.sh/v1alpha1/TriggerAuthentication",
  },
  PodMonitor: {
    model: PodMonitor,
    module: "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
  },
};

const given = JSON.parse(readFileSync(process.argv[2], "utf8"));
let faulty = false;
const lines = Object.entries(known).map(([kind, { module }]) => `import type { I${kind} } from "${module}";`);
for (const [index, { folder, resource }] of given.entries()) {
  const { model: Model } = known[resource.kind] ?? {};
  if (Model === undefined || Model.apiVersion !== resource.apiVersion) {
    console.error(`${folder}: ${resource.apiVersion} ${resource.kind} has no schema here`);
    faulty = true;
    continue;
  }
  try {
    await new Model(resource).validate();
  } catch (error) {
    console.error(`${folder}: ${resource.kind}: ${error.message}`);
    faulty = true;
  }
  lines.push(`// ${folder}`, `export const resource${index}: I${resource.kind} = ${JSON.stringify(resource)};`);
}
writeFileSync("resources.ts", lines.join("\n"));
const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"];
try {
  execFileSync("node_modules/.bin/tsc", [...options, "resources.ts"], { stdio: "inherit" });
} catch {
  faulty = true;
}
console.log(`${given.length} resources of operators`);
process.exit(faulty || given.length === 0 ? 1 : 0);
