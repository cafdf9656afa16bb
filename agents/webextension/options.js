// The options, and a line that says how the agent fares.
"use strict";

const form = document.getElementById("options");

// Throws an Error that the person can read.
function read() {
  const given = Object.fromEntries(new FormData(form));
  const gateway = new URL(given.gateway.trim().replace(/^http/, "ws"));
  const site = new URL(given.site.trim());
  if (!["ws:", "wss:"].includes(gateway.protocol)) throw new Error("the gateway's address begins with ws:// or wss://");
  if (!["http:", "https:"].includes(site.protocol)) throw new Error("the site's address begins with https:// or http://");
  return {
    gateway: gateway.origin + gateway.pathname.replace(/\/(client\/register)?$/, ""),
    token: given.token.trim(),
    site: site.origin,
    kind: given.kind,
    path: `/${(given.path || "v1").replace(/^\/+|\/+$/g, "")}`,
    models: given.models.split(",").map((name) => name.trim()).filter(Boolean),
    concurrency: Math.max(1, Math.trunc(Number(given.concurrency)) || 1),
    name: given.name.trim(),
  };
}

function tell({state = "off", error = "", served = 0} = {}) {
  document.getElementById("state").textContent = state;
  document.getElementById("error").textContent = error;
  document.getElementById("served").textContent = served;
}

async function save(event) {
  event.preventDefault();
  try {
    const options = read();
    const site = new URL(options.site);
    const granted = await chrome.permissions.request({origins: [`${site.protocol}//${site.hostname}/*`]}); // the first await: a browser asks only upon a click
    if (!granted) throw new Error("without the permission for the site nothing can be asked of it");
    await chrome.storage.local.set({options: {...options, savedAt: Date.now()}});
  } catch (error) {
    tell({state: "not saved", error: error.message});
  }
}

async function show() {
  const {options = {}, status} = await chrome.storage.local.get(["options", "status"]);
  for (const [name, value] of Object.entries(options)) if (form.elements[name]) form.elements[name].value = value;
  tell(status);
}

form.addEventListener("submit", save);
chrome.storage.onChanged.addListener((changes) => changes.status && tell(changes.status.newValue));
show();
