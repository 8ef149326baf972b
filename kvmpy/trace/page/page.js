"use strict";
// The page of a trace. Everything that is shown comes from #data as text; nothing of it becomes markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main");
  const SVG = "http://www.w3.org/2000/svg";
  const PAGE_OF_ROWS = 200;

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
      else if (value !== false && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  function svg(tag, attributes, ...children) {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }
  function ns(time) {
    if (!time) return "0";
    let value = time, unit = "ns";
    for (const next of ["µs", "ms", "s"]) {
      if (value < 999.5) break;
      value /= 1000;
      unit = next;
    }
    return `${unit === "ns" ? Math.round(value) : value < 9.995 ? value.toFixed(2) : value < 99.95 ? value.toFixed(1) : Math.round(value)} ${unit}`;
  }
  const count = (number) => number.toLocaleString("en").replace(/,/g, "\u202f");
  const percent = (part) => `${(100 * part).toFixed(part < 0.0995 ? 1 : 0)} %`;
  const sum = (numbers) => numbers.reduce((one, other) => one + other, 0);

  const kinds = data.kinds.map((row) => row.kind);
  // More kinds than colours share the last one; the most frequent come first.
  const order = [...data.kinds].sort((one, other) => other.count - one.count).map((row) => row.kind);
  const colour = (kind) => `var(--k${Math.min(order.indexOf(kind), 7)})`;
  const measured = data.kinds.some((row) => row.total_ns > 0);

  function section(title, about, ...children) {
    const id = title.toLowerCase().replace(/[^a-z]+/g, "-");
    const node = el("section", { "aria-labelledby": id }, el("h2", { id }, title), about ? el("p", {}, about) : null, ...children);
    main.append(node);
    return node;
  }

  function head() {
    const image = data.about.image || "";
    const facts = { events: count(data.events), time: ns(data.ns), ...data.about };
    main.replaceChildren(
      el("h1", {}, `Trace of ${image.split("/").pop() || "a machine"}`),
      el("dl", { class: "facts" }, ...Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    );
  }

  // Where the time of each vCPU went.
  function shares() {
    if (!measured) return;
    const [device, rest] = data.about.traced ? ["in the traced program", "not running"] : ["in devices", "in kvmpy"];
    const parts = [["guest", "in the guest", "guest_ns"], ["device", device, "device_ns"], ["rest", rest, "kvmpy_ns"]];
    const lanes = Object.entries(data.vcpus).map(([index, span]) => {
      const whole = sum(parts.map((part) => span[part[2]])) || 1;
      const words = parts.map((part) => `${ns(span[part[2]])} ${part[1]} (${percent(span[part[2]] / whole)})`).join(", ");
      const bar = parts.map((part) => el("span", { class: part[0], style: { width: `${(100 * span[part[2]]) / whole}%` } }));
      return el("div", { class: "lane" }, el("span", {}, `vCPU ${index}`),
        el("div", {}, el("div", { class: "share", role: "img", "aria-label": words, title: words }, ...bar), el("span", { class: "facts" }, words)));
    });
    const legend = parts.map((part) => el("span", { class: "key" }, el("i", { class: part[0] }), part[1]));
    section("Where the time went", "Of each vCPU, between its first answered exit and its last. Waiting in HLT counts as the guest's.",
      el("div", { class: "legend" }, ...legend), ...lanes);
  }

  // The timeline: stacked bars by kind; one path for each kind.
  function timeline() {
    const { steps, width, series } = data.timeline;
    if (!steps) return;
    const HEIGHT = 180;
    const hidden = new Set();
    let what = "n";
    const plot = svg("svg", { viewBox: `0 0 ${steps} ${HEIGHT}`, preserveAspectRatio: "none", height: HEIGHT, role: "img" });
    const tip = el("div", { class: "tip", hidden: "" });
    const cursor = el("div", { class: "cursor", hidden: "" });
    const top = el("span", {});
    const values = (kind) => series[`${what} ${kind}`];
    const shown = () => order.filter((kind) => values(kind) && !hidden.has(kind));
    const format = (number) => (what === "n" ? `${count(number)} events` : ns(number));

    function draw() {
      const base = new Array(steps).fill(0);
      for (const kind of shown()) values(kind).forEach((value, step) => (base[step] += value));
      const most = Math.max(...base, 1);
      base.fill(0);
      plot.replaceChildren(...shown().map((kind) => {
        let path = "";
        values(kind).forEach((value, step) => {
          if (!value) return;
          const y = HEIGHT - ((base[step] + value) / most) * HEIGHT;
          path += `M${step} ${y.toFixed(2)}h1v${((value / most) * HEIGHT).toFixed(2)}h-1z`;
          base[step] += value;
        });
        const node = svg("path", { d: path, "data-kind": kind });
        node.style.fill = colour(kind);
        return node;
      }));
      plot.setAttribute("aria-label", `Timeline of ${ns(steps * width)} by kind of event; at most ${format(most)} in ${ns(width)}`);
      top.textContent = `top of the scale: ${format(most)} in ${ns(width)}`;
    }
    function point(event) {
      const box = plot.getBoundingClientRect();
      const step = Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * steps), 0), steps - 1);
      const lines = shown().filter((kind) => values(kind)[step]).map((kind) => `${kind}  ${format(values(kind)[step])}`);
      tip.textContent = [`${ns(step * width)} to ${ns((step + 1) * width)}`, ...(lines.length ? lines : ["nothing"])].join("\n");
      tip.hidden = cursor.hidden = false;
      const left = ((step + 0.5) / steps) * box.width;
      cursor.style.left = `${8 + left}px`;
      cursor.style.height = `${box.height}px`;
      tip.style.left = left > box.width / 2 ? "auto" : `${left + 20}px`;
      tip.style.right = left > box.width / 2 ? `${box.width - left + 20}px` : "auto";
    }
    const chart = el("div", { class: "chart" }, plot, cursor, tip,
      el("div", { class: "ends" }, el("span", {}, "0"), top, el("span", {}, ns(steps * width))));
    chart.addEventListener("pointermove", point);
    chart.addEventListener("pointerleave", () => (tip.hidden = cursor.hidden = true));
    const keys = order.filter((kind) => series[`n ${kind}`]).map((kind) => {
      const button = el("button", { class: "plain key", type: "button", "aria-pressed": "true", "data-kind": kind, onclick: () => {
        hidden.has(kind) ? hidden.delete(kind) : hidden.add(kind);
        button.setAttribute("aria-pressed", String(!hidden.has(kind)));
        draw();
      } }, el("i", { style: { background: colour(kind) } }), kind);
      return button;
    });
    const choice = el("select", { id: "measure", onchange: (event) => { what = event.target.value; draw(); } },
      el("option", { value: "n" }, "events"), el("option", { value: "t" }, "time of the answers"));
    section("Timeline", null, el("div", { class: "tools" }, measured ? el("label", {}, "height", choice) : null,
      el("div", { class: "legend", role: "group", "aria-label": "kinds shown" }, ...keys)), chart, ...lanes(steps, width, series));
    draw();
  }

  // One lane for each vCPU: guest from below, devices from above.
  function lanes(steps, width, series) {
    if (!measured) return [];
    const HEIGHT = 40;
    const found = Object.keys(data.vcpus).filter((index) => series[`g ${index}`]);
    const rows = found.map((index) => {
      const bars = [["guest", `g ${index}`, true], ["device", `d ${index}`, false]].map(([name, key, below]) => {
        let path = "";
        series[key].forEach((value, step) => {
          const high = Math.min(value / width, 1) * HEIGHT;
          if (high > 0.05) path += `M${step} ${below ? (HEIGHT - high).toFixed(2) : 0}h1v${high.toFixed(2)}h-1z`;
        });
        const node = svg("path", { d: path });
        node.style.fill = `var(--${name})`;
        return node;
      });
      const plot = svg("svg", { viewBox: `0 0 ${steps} ${HEIGHT}`, preserveAspectRatio: "none", height: HEIGHT, role: "img",
        "aria-label": `vCPU ${index} over time: guest from below, devices from above` }, ...bars);
      return el("div", { class: "over-time" }, `vCPU ${index}`, el("div", { class: "chart" }, plot));
    });
    return found.length ? [el("p", { class: "over-time" }, "Each vCPU over the same time: the guest from below (green), devices from above (orange)."), ...rows] : [];
  }

  function histograms() {
    const figures = Object.entries(data.histograms).map(([kind, bars]) => {
      const row = data.kinds.find((one) => one.kind === kind);
      const most = Math.max(...bars.map((bar) => bar[2]));
      const plot = svg("svg", { viewBox: `0 0 ${bars.length} 100`, preserveAspectRatio: "none", role: "img",
        "aria-label": `${kind}: median ${ns(row.median_ns)}, 99 % below ${ns(row.p99_ns)}, longest ${ns(row.max_ns)}` });
      bars.forEach(([low, end, number], at) => {
        if (!number) return;
        const high = Math.max((100 * number) / most, 1.5);
        const bar = svg("rect", { x: at + 0.06, width: 0.88, y: 100 - high, height: high });
        bar.style.fill = colour(kind);
        bar.append(svg("title", {}, `${ns(low)} to ${ns(end)}: ${count(number)}`));
        plot.append(bar);
      });
      return el("figure", {},
        el("figcaption", {}, el("h3", {}, kind), el("span", {}, `median ${ns(row.median_ns)}, p99 ${ns(row.p99_ns)}`)), plot,
        el("div", { class: "ends" }, el("span", {}, ns(bars[0][0])), el("span", {}, ns(bars[bars.length - 1][1]))));
    });
    if (figures.length) section("How long the answers took", "By kind of event; each bar is a quarter of a doubling of time.", el("div", { class: "many" }, ...figures));
  }

  function instructions() {
    if (!data.rips.length) return;
    const key = measured ? "total" : "count";
    const most = Math.max(...data.rips.map((row) => row[key]), 1);
    const all = measured ? sum(data.kinds.map((row) => row.total_ns)) : data.events;
    const body = data.rips.map((row) => el("tr", {},
      el("td", { class: "n part", style: { "--w": `${(100 * row[key]) / most}%` } }, percent(row[key] / all)),
      el("td", { class: "n" }, count(row.count)), measured ? el("td", { class: "n" }, ns(row.total)) : null,
      el("td", { class: "mono" }, row.rip), el("td", { class: "mono" }, row.name === row.rip ? "" : row.name)));
    section("Hottest instructions", measured ? "By the time that their exits took." : "By the number of their events.",
      el("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "hottest instructions" }, el("table", { id: "rips" }, el("thead", {}, el("tr", {}, ...["share", "events", measured ? "time" : null, "address", "function and line"]
        .filter(Boolean).map((name, at) => el("th", { scope: "col", class: at < (measured ? 3 : 2) ? "n" : "" }, name)))), el("tbody", {}, ...body))));
  }

  // The table of everything: rows by kind, place and instruction; filtered by words and kind, sorted by any column.
  function table() {
    const columns = [["kind"], ["place"], ["instruction"], ["count", count], ["time", ns], ["median", ns], ["p99", ns], ["longest", ns], ["guest before", ns]]
      .map(([name, format], index) => ({ name, format, index })).filter((column) => measured || column.index < 4);
    let sorted = measured ? 4 : 3, down = true, limit = PAGE_OF_ROWS;
    const body = el("tbody", {});
    const told = el("output", { id: "told", "aria-live": "polite" });
    const more = el("button", { class: "plain", type: "button", onclick: () => { limit += 10 * PAGE_OF_ROWS; draw(); } }, "Show more rows");
    const words = el("input", { id: "filter", type: "search", placeholder: "0x3f8, lapic, console ...", oninput: () => { limit = PAGE_OF_ROWS; draw(); } });
    const kind = el("select", { id: "kind", onchange: () => { limit = PAGE_OF_ROWS; draw(); } },
      el("option", { value: "" }, "all"), ...kinds.map((name) => el("option", {}, name)));
    const heads = columns.map((column) => el("th", { scope: "col", class: column.format ? "n" : "" },
      el("button", { type: "button", "data-column": column.name, onclick: () => {
        down = sorted === column.index ? !down : Boolean(column.format);
        sorted = column.index;
        draw();
      } }, column.name)));

    function draw() {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = data.rows.filter((row) => (!kind.value || row[0] === kind.value)
        && wanted.every((word) => `${row[0]} ${row[1]} ${row[2]}`.toLowerCase().includes(word)));
      found.sort((one, other) => {
        const first = one[sorted], second = other[sorted];
        return (typeof first === "number" ? first - second : first < second ? -1 : first > second ? 1 : 0) * (down ? -1 : 1);
      });
      body.replaceChildren(...found.slice(0, limit).map((row) => el("tr", {}, ...columns.map(({ index, format }) =>
        format ? el("td", { class: "n" }, index > 3 && !row[4] && index < 8 ? "" : format(row[index])) : el("td", { class: index ? "mono" : "" }, row[index])))));
      columns.forEach((column, at) => heads[at].setAttribute("aria-sort", column.index === sorted ? (down ? "descending" : "ascending") : "none"));
      told.textContent = `${count(found.length)} rows, ${count(sum(found.map((row) => row[3])))} events`
        + (found.length > limit ? `; the first ${count(limit)} are shown` : "");
      more.hidden = found.length <= limit;
    }
    section("Everything", "Events of one kind, at one place, by one instruction."
      + (data.all_rows > data.rows.length ? ` Of ${count(data.all_rows)} such rows the page has the ${count(data.rows.length)} that took or were the most.` : ""),
      el("div", { class: "tools" }, el("label", {}, "filter by words", words), el("label", {}, "kind", kind), told),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "all rows" }, el("table", { id: "rows" }, el("thead", {}, el("tr", {}, ...heads)), body)), el("div", { class: "tools" }, more));
    draw();
  }

  function slowest() {
    if (!data.slowest.length) return;
    const body = data.slowest.map(([cost, time, vcpu, name, text]) => el("tr", {}, el("td", { class: "n" }, ns(cost)), el("td", { class: "n" }, ns(time)),
      el("td", { class: "n" }, vcpu < 0 ? "" : String(vcpu)), el("td", { class: "mono" }, text), el("td", { class: "mono" }, name)));
    section("Slowest answers", null, el("details", {}, el("summary", {}, `${data.slowest.length} events`), el("div", { class: "scroll" }, el("table", { id: "slowest" },
      el("thead", {}, el("tr", {}, ...["took", "at", "vCPU", "event", "instruction"].map((name, at) => el("th", { scope: "col", class: at < 3 ? "n" : "" }, name)))),
      el("tbody", {}, ...body)))));
  }

  function ends() {
    const block = (title, lines) => (lines.length ? el("details", {}, el("summary", {}, `${title} (${lines.length} events)`), el("pre", {}, lines.join("\n"))) : null);
    section("How it began and ended", null, block("The first", data.first), block("The last", data.last));
  }

  head();
  shares();
  timeline();
  histograms();
  instructions();
  table();
  slowest();
  ends();
})();
