// What the browser keeps: the history of pictures, and the jobs that are not done.
// Where it keeps nothing (a private window, a full disk), the page works without.

const NAME = "diffuser-playground";
const PICTURES = "pictures";
const JOBS = "jobs";
/** Entries of the history; the oldest make room. */
const MOST_ENTRIES = 100;

let opening = null;

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(PICTURES, { keyPath: "id" }).createIndex("created", "created");
      request.result.createObjectStore(JOBS, { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

/** Does `action` with a store of the database; `otherwise` if that cannot be done. */
async function within(name, mode, action, otherwise) {
  try {
    const database = await open();
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(name, mode);
      const request = action(transaction.objectStore(name));
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onerror = () => reject(transaction.error);
      transaction.onabort = () => reject(transaction.error);
    });
  } catch {
    return otherwise;
  }
}

/** The entries, the latest first. */
export async function entries() {
  const all = (await within(PICTURES, "readonly", (kept) => kept.index("created").getAll(), [])) ?? [];
  return all.reverse();
}

/** Keeps an entry; the oldest of too many goes. */
export async function keep(entry) {
  await within(PICTURES, "readwrite", (kept) => kept.put(entry));
  const oldest = (await entries()).slice(MOST_ENTRIES);
  for (const { id } of oldest) await remove(id);
}

export const remove = (id) => within(PICTURES, "readwrite", (kept) => kept.delete(id));
export const clear = () => within(PICTURES, "readwrite", (kept) => kept.clear());

/** Remembers a job: its id, and the entry that it will become. */
export const rememberJob = (job) => within(JOBS, "readwrite", (kept) => kept.put(job));
export const forgetJob = (id) => within(JOBS, "readwrite", (kept) => kept.delete(id));
export const rememberedJobs = async () => (await within(JOBS, "readonly", (kept) => kept.getAll(), [])) ?? [];
