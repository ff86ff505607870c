"""The report's style sheet: system fonts, one accent, light and dark, wide and narrow."""

STYLE = """
:root{color-scheme:light dark;--page:#fcfcfd;--ink:#1b2026;--soft:#59636e;--line:#e1e5ea;
--fill:#f2f4f7;--bar:#b4bdc8;--accent:#0b6a75;--tint:#e6f2f3}
@media (prefers-color-scheme:dark){:root{--page:#14181c;--ink:#e8ebee;--soft:#a0abb6;
--line:#2b323a;--fill:#1c2228;--bar:#4f5b67;--accent:#62c4cc;--tint:#17292c}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
font-variant-numeric:tabular-nums;overflow-wrap:break-word}
header,main,footer{max-width:1216px;margin:0 auto;padding:0 28px}
header{padding-top:40px}
main>section{margin-top:56px}
footer{margin-top:56px;padding-top:20px;padding-bottom:40px;color:var(--soft);font-size:14px}
h1,h2,h3,p,figure,dl,dd,ul,ol{margin:0}
h1{font-size:30px;line-height:1.2;font-weight:650;letter-spacing:-.015em}
h2{font-size:20px;line-height:1.3;font-weight:650;letter-spacing:-.01em}
h3{font-size:15px;line-height:1.4;font-weight:600}
.soft,.intro{color:var(--soft)}
.intro{max-width:74ch;margin-top:4px;font-size:15px}
.subtitle{margin-top:6px;color:var(--soft);font-size:17px}
.verdict{margin-top:22px;max-width:78ch;font-size:18px}
.verdict strong{color:var(--accent);font-weight:650}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:3px;border-radius:2px}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);
white-space:nowrap}

.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:28px;
margin-top:26px;padding:22px 0 24px;border-top:1px solid var(--line);
border-bottom:1px solid var(--line);list-style:none}
.tiles h2{font-size:14px;font-weight:500;letter-spacing:0;color:var(--soft)}
.tiles .value{font-size:30px;line-height:1.25;font-weight:650;letter-spacing:-.02em}
.tiles .value small{font-size:14px;font-weight:500;letter-spacing:0;color:var(--soft)}
.track{display:block;height:4px;border-radius:2px;background:var(--fill);overflow:hidden}
.track i{display:block;height:100%;border-radius:2px;background:var(--bar)}
.track.own{margin-top:4px}
.track.own i{background:var(--accent)}
.others{margin-top:10px;padding:0;list-style:none;font-size:13px;line-height:1.35;
color:var(--soft)}
.others li{margin-top:8px}
.others div{display:flex;gap:10px;justify-content:space-between;align-items:baseline;
margin-bottom:3px}
.others b{color:var(--ink);font-weight:500;white-space:nowrap}

.arms{display:grid;grid-template-columns:repeat(var(--arms),minmax(0,1fr));gap:24px 32px}
.heads{position:sticky;top:0;z-index:2;margin-top:18px;padding:10px 0;background:var(--page);
border-bottom:1px solid var(--line)}
.heads p{color:var(--soft);font-size:13px;line-height:1.4}
.heads .own h3{color:var(--accent)}
.prompt{margin-top:18px}
.prompt>h3{margin-bottom:7px;font-weight:500;overflow-wrap:anywhere}
.prompt>h3::before{content:"\\201C";color:var(--soft)}
.prompt>h3::after{content:"\\201D";color:var(--soft)}
.seeds{display:grid;grid-template-columns:repeat(var(--columns),minmax(0,1fr));gap:4px}
.seeds img{display:block;width:100%;height:auto;border-radius:3px;background:var(--fill)}
.seeds img,.previews img{outline:1px solid rgba(128,128,128,.22);outline-offset:-1px}
.crisp{image-rendering:pixelated}
figcaption{font-size:13px;line-height:1.4;color:var(--soft)}
.few figcaption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.many figcaption{margin-bottom:5px}
summary{cursor:pointer;color:var(--accent);font-weight:500}
details{margin-top:22px}

.scroll{margin-top:16px;overflow-x:auto}
table{width:100%;border-collapse:collapse;font-size:15px}
th,td{padding:11px 0 11px 24px;text-align:right;vertical-align:baseline;white-space:nowrap;
border-bottom:1px solid var(--line);font-weight:400}
thead th{padding-bottom:8px;color:var(--soft);font-size:13px;line-height:1.35;vertical-align:bottom;
white-space:normal}
th:first-child{padding-left:10px;text-align:left;white-space:normal;min-width:168px}
td:last-child,thead th:last-child{padding-right:10px}
tbody th{font-weight:600}
tbody th span{display:block;max-width:46ch;color:var(--soft);font-size:13px;line-height:1.4;
font-weight:400}
tbody .own{background:var(--tint)}
td small{display:block;color:var(--soft);font-size:13px;line-height:1.3}
td.best data{font-weight:700}
.terms{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:14px 32px;
margin-top:18px;font-size:14px;line-height:1.5}
.terms dt{font-weight:600}
.terms dd{color:var(--soft)}

.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:34px 32px;
margin-top:22px}
.chart .top{display:flex;justify-content:space-between;align-items:baseline;gap:12px}
.chart .top span{color:var(--soft);font-size:13px;white-space:nowrap}
.chart svg{display:block;width:100%;height:auto;margin:8px 0 4px}
.missing{padding:40px 0;color:var(--soft);text-align:center}
svg text{fill:var(--soft);font-size:11px;font-family:inherit}
svg path{fill:none;stroke-linejoin:round;stroke-linecap:round}
svg .grid{stroke:var(--line)}
svg .axis{stroke:var(--bar)}
svg .raw{stroke:var(--accent);stroke-width:1;opacity:.28}
svg .mean{stroke:var(--accent);stroke-width:2}
svg .end{fill:var(--accent)}

.previews{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:24px;
margin-top:18px}
.previews img{display:block;width:100%;height:auto;border-radius:3px}
.previews figcaption{margin-bottom:6px}
.use{margin-top:14px;padding-left:1.3em;max-width:74ch}
.use li{margin-top:8px;padding-left:4px}
code{padding:2px 6px;border-radius:4px;background:var(--fill);overflow-wrap:anywhere;
font:14px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.facts{margin-top:14px;max-width:900px;font-size:15px}
.facts div{display:grid;grid-template-columns:minmax(130px,230px) 1fr;gap:4px 24px;padding:8px 0;
border-bottom:1px solid var(--line)}
.facts dt{color:var(--soft)}
.facts dd{overflow-wrap:anywhere}
.notes{margin-top:14px;padding-left:1.2em;max-width:80ch;color:var(--soft);font-size:15px}

@media (max-width:1100px){.arms{gap:24px 20px}}
@media (max-width:720px){
header,main,footer{padding-left:16px;padding-right:16px}
header{padding-top:24px}
main>section{margin-top:44px}
h1{font-size:25px}
.verdict{font-size:17px}
.tiles{grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:22px 20px}
.tiles .value{font-size:25px}
.heads{display:none}
.arms{grid-template-columns:minmax(0,1fr);gap:12px}
.few figcaption{position:static;width:auto;height:auto;clip-path:none;margin-bottom:4px}
.prompt{margin-top:28px}
.facts div{grid-template-columns:1fr;gap:0}
th,td{padding-left:14px}
th:first-child{min-width:124px}
}
@media print{.heads{position:static}.prompt,.chart{break-inside:avoid}}
"""
