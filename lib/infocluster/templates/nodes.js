// SPDX-License-Identifier: Apache-2.0
// Follows the controller's updates: asks request.cgi for what came since the revision that the page shows, and where
// something came, fetches the page as it is published now and takes over the parts that differ. The page is rendered
// in one place only; a missed update, or a controller that was started anew, ends in the same page.
"use strict";
(() => {
  // Seconds: beyond that somebody has set a clock.
  const CLOCK_SET = 5;
  // Seconds: a controller that cron starts every minute has missed some.
  const LATE = 300;
  const state = document.getElementById("state").dataset;
  const live = document.getElementById("live");
  const every = Number(state.every);
  // Ages count by the server's clock, not the visitor's.
  let made = Number(state.made), epoch = state.epoch, revision = Number(state.revision);
  let seen = 0, told_at = made, offset = 0, has_offset = false, failures = 0, said = "";

  const now = () => Date.now() / 1000 + offset;
  const say = (text) => { if (text !== said) { live.textContent = said = text; } };
  const span = (seconds) => {
    const whole = Math.max(0, Math.floor(seconds));
    if (whole < 120) return whole + " s";
    if (whole < 7200) return Math.floor(whole / 60) + " min";
    return whole < 172800 ? Math.floor(whole / 3600) + " h" : Math.floor(whole / 86400) + " days";
  };

  // A node is gray when it was silent for longer than it said: that needs no word of the server.
  const age = () => {
    if (!has_offset) return;
    let silent = 0;
    const rows = document.querySelectorAll("[data-node]");
    for (const row of rows) {
      const old = now() - Number(row.dataset.last);
      const is_gray = old > Number(row.dataset.period);
      silent += is_gray;
      row.querySelector(".age").textContent = span(old);
      if (row.classList.contains("gray") !== is_gray) {
        row.classList.toggle("gray", is_gray);
        row.querySelector(".word").textContent = is_gray ? "silent" : "reporting";
      }
    }
    document.getElementById("silent").textContent = silent.toLocaleString("en");
    document.getElementById("reporting").textContent = (rows.length - silent).toLocaleString("en");
  };

  const heard = (nodes) => {
    for (const [name, [last, period]] of Object.entries(nodes)) {
      const row = document.getElementById("node-" + name);
      if (row && Number(row.dataset.last) < last) {
        row.dataset.last = last;
        row.dataset.period = period;
      }
    }
  };

  // What the visitor has the focus on, and how far he has scrolled a table, stays.
  const adopt = (fresh) => {
    const ids = new Set([...fresh.querySelectorAll("[data-live]")].map((part) => part.id));
    let before = "state";
    for (const part of fresh.querySelectorAll("[data-live]")) {
      const old = document.getElementById(part.id);
      if (!old) {
        document.getElementById(before).after(part);
      } else if (old.outerHTML !== part.outerHTML) {
        const places = [...old.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
        const active = old.contains(document.activeElement) ? document.activeElement : null;
        const href = active && active.getAttribute("href");
        old.replaceWith(part);
        part.querySelectorAll(".scroll").forEach((box, place) => { box.scrollLeft = places[place] || 0; });
        if (active) {
          const again = href ? part.querySelector(`[href="${CSS.escape(href)}"]`) : part.querySelector(".scroll");
          if (again) again.focus({ preventScroll: true });
        }
      }
      before = part.id;
    }
    for (const old of document.querySelectorAll("[data-live]")) {
      if (!ids.has(old.id)) old.remove();
    }
  };

  const refresh = async () => {
    const reply = await fetch(location.pathname, { cache: "no-cache" });
    if (!reply.ok) throw new Error(reply.status);
    const fresh = new DOMParser().parseFromString(await reply.text(), "text/html");
    const told = fresh.getElementById("state").dataset;
    adopt(fresh);
    // That moment has passed, so where the page says gray it is gray by our clock too: Date was up to a second behind.
    const least = Number(told.made) - Date.now() / 1000;
    offset = Math.max(offset, Math.min(least, offset + 1));
    document.getElementById("made").textContent = fresh.getElementById("made").textContent;
    made = Number(told.made);
    epoch = told.epoch;
    revision = Number(told.revision);
  };

  const ask = async () => {
    const query = new URLSearchParams({ updates: "", since: revision, epoch });
    const reply = await fetch(state.request + "?" + query, { cache: "no-cache" });
    if (!reply.ok) throw new Error(reply.status);
    const told = await reply.json();
    told_at = told.made;
    const clock = Date.parse(reply.headers.get("Date"));
    if (clock) {
      // Date has no parts of a second, and it took a while to get here: the clock is ahead of ours by no less.
      const least = (clock - Date.now()) / 1000;
      offset = has_offset && Math.abs(least - offset) < CLOCK_SET ? Math.max(offset, least) : least;
      has_offset = true;
    }
    heard(told.nodes);
    if (told.reset || told.revision > revision || told.epoch !== epoch || told.made > Math.max(made, seen)) {
      seen = told.made;
      await refresh();
    }
  };

  const follow = async () => {
    try {
      if (!document.hidden) {
        await ask();
        age();
        failures = 0;
        say(now() - told_at < LATE ? "It follows what comes." : `The controller has told nothing for ${span(now() - told_at)}.`);
      }
    } catch (error) {
      failures += 1;
      if (failures > 2) say("The server does not answer; this is what was known.");
    }
    setTimeout(follow, every * Math.min(2 ** Math.max(0, failures - 1), 12));
  };
  setInterval(age, 1000);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask().then(age, () => {}); });
  follow();
})();
