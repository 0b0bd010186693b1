"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tasks = data.tasks;
  const COLOURS = {
    SUCCEEDED: "#2f9e6e", FAILED: "#d64545", TIMED_OUT: "#e08a00", CPU_TIME_EXCEEDED: "#b58900",
    OUT_OF_MEMORY: "#8e5cd9", OUTPUT_EXCEEDED: "#3b82c4", CRASHED: "#d6336c", KILLED: "#8a6d5b",
    CANCELLED: "#8a949e", SANDBOX_ERROR: "#5b6570",
  };
  const MIB = 1024 * 1024;
  const STEP = 200;
  const colour = (outcome) => COLOURS[outcome] || "#8a949e";
  const time = (seconds) => (seconds === null ? "" : `${seconds.toFixed(2)} s`);
  const size = (bytes) => {
    if (bytes === null) return "";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let place = 0;
    for (; bytes >= 1024 && place < 4; place += 1) bytes /= 1024;
    return `${Number(bytes.toPrecision(4))} ${units[place]}`;
  };
  // Pictures read some markup in texts, so a name gets none.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const make = (kind, text, style) => {
    const node = document.createElement(kind);
    if (text !== undefined) node.textContent = text;
    if (style) node.className = style;
    return node;
  };
  const counts = new Map();
  for (const task of tasks) counts.set(task.outcome, (counts.get(task.outcome) || 0) + 1);
  const order = [...counts.keys()].sort(
    (one, other) => (other === "SUCCEEDED") - (one === "SUCCEEDED") || counts.get(other) - counts.get(one));
  const chosen = new Set();

  // --- the head

  const head = () => {
    document.getElementById("title").textContent = data.title;
    const begun = data.start ? new Date(data.start * 1000).toLocaleString() : "";
    const end = Math.max(0, ...tasks.map((task) => (task.begin === null ? 0 : task.begin + (task.seconds || 0))));
    document.getElementById("facts").textContent =
      [`${tasks.length} tasks`, begun && `begun ${begun}`, end && `${end.toFixed(1)} s`].filter(Boolean).join(" · ");
    for (const outcome of order) {
      const part = make("div");
      part.style.cssText = `flex: ${counts.get(outcome)}; background: ${colour(outcome)}`;
      document.getElementById("share").append(part);
      const button = make("button");
      const dot = make("span", undefined, "dot");
      dot.style.background = colour(outcome);
      button.append(dot, `${outcome} ${counts.get(outcome)}`);
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => {
        if (!chosen.delete(outcome)) chosen.add(outcome);
        button.setAttribute("aria-pressed", String(chosen.has(outcome)));
        show();
      });
      document.getElementById("outcomes").append(button);
    }
  };

  // --- the pictures

  const layout = (x, y, more) => {
    const style = getComputedStyle(document.documentElement);
    const axis = { gridcolor: style.getPropertyValue("--line"), zeroline: false, automargin: true };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { color: style.getPropertyValue("--text"), size: 12 }, margin: { l: 48, r: 12, t: 8, b: 40 },
      showlegend: false, xaxis: { ...axis, title: { text: x } }, yaxis: { ...axis, title: { text: y } }, ...more,
    };
  };
  const draw = (id, traces, own) => Plotly.react(id, traces, own, { responsive: true, displayModeBar: false });
  const of = (outcome, wanted) => tasks.filter((task) => task.outcome === outcome && wanted(task));
  const about = (task) => plain(`${task.name} ${task.outcome} ${time(task.seconds)} ${size(task.peak)}`);

  const pictures = () => {
    draw("timeline", order.map((outcome) => {
      const found = of(outcome, (task) => task.begin !== null);
      return {
        type: "bar", orientation: "h", base: found.map((task) => task.begin), marker: { color: colour(outcome) },
        x: found.map((task) => Math.max(task.seconds || 0, 0.001)), y: found.map((task) => task.slot + 1),
        hovertext: found.map(about), hoverinfo: "text",
      };
    }), layout("seconds", "worker", { barmode: "overlay", bargap: 0.15 }));
    const limits = [...new Set(tasks.map((task) => task.memory).filter(Boolean))].slice(0, 5);
    const measured = tasks.filter((task) => task.peak !== null);
    const top = Math.max(0, ...measured.map((task) => task.peak));
    const near = limits.filter((limit) => limit <= 4 * top);  // a limit far above all would press the points flat
    draw("memory", order.map((outcome) => {
      const found = of(outcome, (task) => task.peak !== null && task.seconds !== null);
      return {
        type: "scatter", mode: "markers", marker: { color: colour(outcome), size: 6, opacity: 0.75 },
        x: found.map((task) => task.seconds), y: found.map((task) => task.peak / MIB),
        hovertext: found.map(about), hoverinfo: "text",
      };
    }), layout("seconds", "MiB", {
      shapes: near.map((limit) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: limit / MIB, y1: limit / MIB,
        line: { dash: "dash", width: 1.5, color: "#d64545" } })),
      annotations: near.map((limit) => ({ xref: "paper", x: 1, y: limit / MIB, xanchor: "right", yanchor: "bottom",
        text: `limit ${size(limit)}`, showarrow: false })),
    }));
    const width = Math.max(0.001, ...tasks.map((task) => task.seconds || 0)) / 40;
    draw("times", order.map((outcome) => ({
      type: "histogram", marker: { color: colour(outcome) }, x: of(outcome, (task) => task.seconds !== null)
        .map((task) => task.seconds), name: outcome, xbins: { size: width }, autobinx: false,
    })), layout("seconds", "tasks", { barmode: "stack" }));
  };

  // --- the tables

  const extremes = (id, key, say) => {
    const found = tasks.filter((task) => task[key] !== null).sort((one, other) => other[key] - one[key]).slice(0, 5);
    for (const task of found) {
      const row = make("tr");
      row.append(make("td", say(task[key]), "number"), make("td", task.name));
      document.getElementById(id).append(row);
    }
  };
  const COLUMNS = [
    ["Outcome", "outcome", (task) => task.outcome], ["Time", "seconds", (task) => time(task.seconds), "number"],
    ["CPU", "cpu", (task) => time(task.cpu), "number"], ["Peak", "peak", (task) => size(task.peak), "number"],
    ["Exit", "exit", (task) => (task.exit === null ? "" : String(task.exit)), "number"],
    ["Attempts", "attempts", (task) => (task.attempts > 1 ? String(task.attempts) : ""), "number"],
    ["Task", "name", (task) => task.name, "name"], ["Detail", "detail", (task) => task.detail, "detail"],
  ];
  let sortKey = "", descending = false, most = STEP;
  const compare = (one, other) => {
    const [a, b] = [one[sortKey], other[sortKey]];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "string" ? a.localeCompare(b) : a - b;
    return descending ? -order : order;
  };
  const show = () => {
    const wanted = document.getElementById("filter").value.toLowerCase();
    let found = tasks.filter((task) => (!chosen.size || chosen.has(task.outcome))
      && `${task.name} ${task.outcome} ${task.detail}`.toLowerCase().includes(wanted));
    if (sortKey) found = [...found].sort(compare);
    const body = document.querySelector("#tasks tbody");
    body.replaceChildren(...found.slice(0, most).map((task) => {
      const row = make("tr");
      for (const [, , say, style] of COLUMNS) row.append(make("td", say(task), style));
      const dot = make("span", undefined, "dot");
      dot.style.background = colour(task.outcome);
      row.firstChild.prepend(dot);
      return row;
    }));
    document.getElementById("count").textContent = `${found.length} of ${tasks.length}`;
    document.getElementById("more").hidden = found.length <= most;
  };
  const heads = () => {
    const row = make("tr");
    for (const [title, key, , style] of COLUMNS) {
      const cell = make("th", undefined, style);
      const button = make("button", title);
      button.addEventListener("click", () => {
        descending = sortKey === key ? !descending : style === "number";
        sortKey = key;
        for (const other of row.children) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
        show();
      });
      cell.append(button);
      row.append(cell);
    }
    document.querySelector("#tasks thead").append(row);
  };

  head();
  pictures();
  extremes("slowest", "seconds", time);
  extremes("largest", "peak", size);
  heads();
  show();
  document.getElementById("filter").addEventListener("input", () => { most = STEP; show(); });
  document.getElementById("more").addEventListener("click", () => { most += 5 * STEP; show(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", pictures);
})();
