// Read a wustore file with h5wasm: times, and of every layer the shape, the type and the sha256 of each plane.
// node read_hdf5.mjs STORE.h5; h5wasm must be in a node_modules folder beside this file or above it.
import { createHash } from "node:crypto";
import * as h5wasm from "h5wasm/node";

await h5wasm.ready;
const file = new h5wasm.File(process.argv[2], "r");
const document = JSON.parse(file.attrs.wustore.value);
if (document.format !== "wustore" || document.version.split(".")[0] !== "1") throw new Error("not a store of 1.x");

const layers = {};
for (const name of Object.keys(document.layers)) {
  const dataset = file.get(name);
  const planes = [];
  for (let i = 0; i < document.n_images; i++) {
    const data = dataset.slice([[i, i + 1], [], []]);
    planes.push(createHash("sha256").update(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)).digest("hex"));
  }
  layers[name] = { shape: dataset.shape, dtype: dataset.dtype, planes };
}
console.log(JSON.stringify({ times: Array.from(file.get("time").value, (t) => (Number.isNaN(t) ? null : t)), layers }));
