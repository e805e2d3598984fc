'use strict';
(() => {
  const root = document.documentElement;
  const one = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const read = (id) => JSON.parse(one(id).textContent);

  // Charts: their colours are names of the style sheet, '@gain' for its --gain.

  const figures = read('figures');
  let axis = 'iterations';

  function palette() {
    const probe = document.body.appendChild(document.createElement('span'));
    const known = {};
    const colour = (name) => {
      if (!(name in known)) {
        probe.style.color = `var(--${name})`;
        known[name] = getComputedStyle(probe).color;
      }
      return known[name];
    };
    return { colour, end: () => probe.remove() };
  }

  function painted(value, colour, isColour = false) {
    if (Array.isArray(value)) {
      return value.map((item) => painted(item, colour, isColour));
    }
    if (value !== null && typeof value === 'object') {
      const entries = Object.entries(value).map(([key, item]) => [key, painted(item, colour, /color/.test(key))]);
      return Object.fromEntries(entries);
    }
    return isColour && typeof value === 'string' && value.startsWith('@') ? colour(value.slice(1)) : value;
  }

  function draw(key) {
    const { colour, end } = palette();
    const { data, layout } = painted(figures[key], colour);
    for (const side of ['xaxis', 'yaxis']) {
      layout[side] = {
        gridcolor: colour('line'), zerolinecolor: colour('faint'), linecolor: colour('line'),
        fixedrange: !layout.meta, ...layout[side],
      };
    }
    if (layout.meta) {
      data.forEach((trace) => { trace.x = trace.meta[axis]; });
      layout.xaxis.title.text = layout.meta[axis];
      // A finger that scrolls the page must not zoom.
      layout.dragmode = matchMedia('(pointer: fine)').matches ? 'zoom' : false;
    } else {
      layout.dragmode = false;
    }
    Object.assign(layout, {
      autosize: true,
      paper_bgcolor: 'rgba(0,0,0,0)',
      plot_bgcolor: 'rgba(0,0,0,0)',
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour('ink') },
      hoverlabel: { bgcolor: colour('surface'), bordercolor: colour('faint'), font: { color: colour('ink') } },
    });
    end();
    return Plotly.react(one(key), data, layout, { displayModeBar: false, responsive: true });
  }

  const drawn = new Set();
  function drawAll() {
    Object.keys(figures).forEach((key) => { drawn.add(key); draw(key); });
  }

  // One after the other, so that the page answers in between.
  async function drawInTurn() {
    for (const key of Object.keys(figures)) {
      if (!drawn.has(key)) {
        drawn.add(key);
        await draw(key);
        if (drawn.size === 1) {
          performance.mark('first-chart');
        }
        await new Promise((resolve) => { setTimeout(resolve); });
      }
    }
    root.dataset.charts = 'drawn';
  }

  // Theme: the system's until the button is pressed.

  const dark = matchMedia('(prefers-color-scheme: dark)');
  const isDark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : dark.matches);
  function showTheme() {
    one('theme').setAttribute('aria-pressed', isDark());
    drawn.forEach(draw);
  }
  one('theme').addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    showTheme();
  });
  dark.addEventListener('change', showTheme);

  // Switches: a group of buttons, one of which is pressed.

  function press(button) {
    button.parentElement.querySelectorAll('button').forEach((other) => {
      other.setAttribute('aria-pressed', other === button);
    });
  }
  all('[data-axis]').forEach((button) => button.addEventListener('click', () => {
    press(button);
    axis = button.dataset.axis;
    [...drawn].filter((key) => figures[key].layout.meta).forEach(draw);
  }));
  all('[data-filter]').forEach((button) => button.addEventListener('click', () => {
    press(button);
    const tone = button.dataset.filter;
    const items = all('.thumbnails li');
    items.forEach((item) => { item.hidden = tone !== 'all' && item.dataset.tone !== tone; });
    const count = items.filter((item) => !item.hidden).length;
    one('shown').textContent = `${count} image${count === 1 ? '' : 's'}`;
  }));

  // Commands.

  all('.copy').forEach((button) => button.addEventListener('click', async () => {
    const code = button.parentElement.querySelector('code');
    let done = true;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      // Some browsers keep the clipboard from pages on the disk.
      getSelection().selectAllChildren(code);
      done = document.execCommand('copy');
    }
    button.textContent = done ? 'Copied' : 'Selected';
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  }));

  // Thumbnails: decoded when they come near, the first ones at once, for print.

  function load(image) {
    image.src = image.dataset.source;
    image.removeAttribute('data-source');
  }
  const near = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
    near.unobserve(entry.target);
    load(entry.target);
  }), { rootMargin: '400px' });
  all('.thumbnail img').forEach((image, index) => (index < 24 ? load(image) : near.observe(image)));

  // Viewer.

  function makeViewer() {
    const { layers: names, sides } = read('gallery-settings');
    const viewer = one('viewer');
    const stage = one('stage');
    const slider = one('slider');
    const selects = { left: one('left'), right: one('right') };
    let chosen = { left: sides[0], right: sides[sides.length - 1] };
    let index = 0;
    let layers = {};

    function slide(percent) {
      slider.value = percent;
      stage.style.setProperty('--at', `${slider.value}%`);
      const [left, right] = ['left', 'right'].map((side) => names[selects[side].value]);
      slider.setAttribute('aria-valuetext', `${slider.value} percent ${left}, the rest ${right}`);
    }
    function showSide(side) {
      const image = one(`${side}-image`);
      image.src = layers[selects[side].value];
      image.alt = names[selects[side].value];
      slide(slider.value);
    }
    function show(to) {
      index = to;
      layers = read(`picture-${index}`);
      const button = document.querySelector(`[data-index="${index}"]`);
      one('viewer-name').textContent = button.querySelector('.file').textContent;
      one('viewer-scores').textContent = `mIoU of this image: ${button.dataset.scores}`;
      for (const side of ['left', 'right']) {
        const keys = Object.keys(layers);
        selects[side].replaceChildren(...keys.map((key) => new Option(names[key] ?? key, key)));
        selects[side].value = keys.includes(chosen[side]) ? chosen[side] : keys[side === 'left' ? 0 : keys.length - 1];
        showSide(side);
      }
    }
    function open(to) {
      // Layers are the last part of the page.
      if (!one(`picture-${to}`)) {
        document.addEventListener('DOMContentLoaded', () => open(to), { once: true });
        return;
      }
      show(to);
      slide(50);
      viewer.showModal();
    }
    function step(by) {
      const shown = all('.thumbnails li:not([hidden]) .thumbnail').map((button) => Number(button.dataset.index));
      const at = shown.indexOf(index) + by;
      show(shown[(at + shown.length) % shown.length]);
    }
    function point(event) {
      if (event.buttons & 1) {
        const box = stage.getBoundingClientRect();
        slide(Math.round(100 * (event.clientX - box.left) / box.width));
      }
    }

    one('left-image').addEventListener('load', ({ target }) => {
      const ratio = target.naturalWidth / target.naturalHeight;
      stage.style.setProperty('--ratio', ratio);
      slider.style.setProperty('--ratio', ratio);
      stage.classList.toggle('small', target.naturalWidth < 300);
    });
    all('.thumbnail').forEach((button) => {
      button.addEventListener('click', () => open(Number(button.dataset.index)));
    });
    for (const side of ['left', 'right']) {
      selects[side].addEventListener('change', () => {
        chosen = { ...chosen, [side]: selects[side].value };
        showSide(side);
      });
    }
    slider.addEventListener('input', () => slide(slider.value));
    stage.addEventListener('pointerdown', (event) => { stage.setPointerCapture(event.pointerId); point(event); });
    stage.addEventListener('pointermove', point);
    one('previous').addEventListener('click', () => step(-1));
    one('next').addEventListener('click', () => step(1));
    one('close').addEventListener('click', () => viewer.close());
    viewer.addEventListener('close', () => document.querySelector(`[data-index="${index}"]`).focus());
    viewer.addEventListener('keydown', (event) => {
      // The slider and the lists have a use for arrows of their own.
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by && !event.target.matches('input, select')) {
        event.preventDefault();
        step(by);
      }
    });
  }
  if (one('viewer')) {
    makeViewer();
  }

  // Print: light, everything unfolded, charts as wide as the paper.

  let before = null;
  addEventListener('beforeprint', () => {
    const folded = all('main details:not([open])');
    before = { theme: root.dataset.theme, folded };
    folded.forEach((item) => { item.open = true; });
    root.dataset.theme = 'light';
    root.classList.add('printing');
    drawAll();
  });
  addEventListener('afterprint', () => {
    before.folded.forEach((item) => { item.open = false; });
    if (before.theme) {
      root.dataset.theme = before.theme;
    } else {
      delete root.dataset.theme;
    }
    root.classList.remove('printing');
    drawAll();
  });

  showTheme();
  drawInTurn();
})();
