"""What radiographs of the chest are said to show, and the words that deny or doubt it.

Each entry is a canonical name and the ways of writing it, as regular expressions on lower-case
text. The lists were made by reading the Indiana chest reports (Demner-Fushman et al., JAMIA 2016,
doi 10.1093/jamia/ocv080); `python experiments/report_sentences.py` measures them there.
"""

# ruff: noqa: E501, one pattern reads best on one line
from __future__ import annotations

import re

FINDINGS: dict[str, tuple[str, ...]] = {
    "pleural effusion": (
        r"(?<!pericardial )(pleural )?effusions?", r"pleural fluid", r"hydrothorax",
        r"blunting of (the |both |bilateral )?(left |right |posterior |lateral )*(cp|costophrenic) (angle|sulc)\w*",
    ),
    "pneumothorax": (r"(hydro)?pneumothora(x|ces)", r"pleural air( collection)?"),
    "cardiomegaly": (
        r"cardiomegaly", r"enlarged (heart|cardiac (silhouette|shadow)|cardiomediastinal silhouette)",
        r"(heart( size)?|cardiac (silhouette|shadow|size)|cardiomediastinal silhouette)"
        r"( size)? (is|are|appears|remains|looks)?( (?!not|within|normal)\w+){0,2} (enlarged|prominent|increased)",
        r"enlargement of the (heart|cardiac (silhouette|shadow))",
        r"cardiac enlargement", r"prominent (heart|cardiac silhouette)",
    ),
    "atelectasis": (r"atelecta\w+", r"(lobar |lung |lobe )collapse"),
    "consolidation": (r"consolidat\w+",),
    "pneumonia": (r"pneumonias?", r"pneumonitis", r"bronchopneumonia"),
    "airspace disease": (r"air ?-?space (disease|process)\w*", r"airspace infiltrates?"),
    "infiltrate": (r"infiltrat(e|es|ion|ions)",),
    "opacity": (r"opacit(y|ies)", r"opacifications?", r"densit(y|ies)"),
    "pulmonary edema": (r"(?<!soft tissue )(o?edema)", r"chf", r"(congestive )?heart failure"),
    "vascular congestion": (
        r"(pulmonary |vascular |venous |pulmonary venous |pulmonary vascular )congestion",
        r"(pulmonary )?vascular (prominence|engorgement)",
        r"cephalization",
    ),
    "nodule": (r"nodul(e|es|ar|arity)",),
    "mass": (r"mass(es)?", r"neoplas\w+", r"malignan\w+", r"tumou?rs?"),
    "granuloma": (r"granulomas?(ta)?(?!tous)",),
    "granulomatous disease": (r"granulomatous",),
    "emphysema": (r"emphysem\w+", r"copd", r"chronic obstructive \w+( disease)?"),
    "hyperinflation": (r"hyper-?(inflat|expan|disten)\w+",),
    "low lung volumes": (
        r"(low|decreased|small|diminished) lung volumes?", r"hypo-?(inflat|ventilat|expan)\w+",
        r"lung volumes are (low|decreased|small|diminished)",
    ),
    "scarring": (r"scar(s|ring)?", r"fibros\w+", r"fibrotic", r"cicatri\w+"),
    "interstitial markings": (
        r"(increased |prominent |coarse\w* |accentuated )(\w+ )?(interstitial|lung|bronchovascular|pulmonary) markings",
        r"interstitial (prominence|thickening|lung disease|disease|changes)",
        r"(interstitial|bronchovascular) markings are (\w+ )?(increased|prominent|coarse\w*)",
    ),
    "pleural thickening": (r"pleural (thickening|plaques?)", r"apical (capping|thickening)"),
    "hiatal hernia": (r"hiatal hernias?", r"hiatus hernias?"),
    "scoliosis": (r"(levo|dextro)?-?scolio\w+", r"(levo|dextro)curvature", r"rotoscoliosis"),
    "kyphosis": (r"kypho(sis|tic|scoliosis)",),
    "fracture": (r"fractures?",),
    "degenerative change": (
        r"degenerative( disc| disk)?( disease| changes?)?", r"spondylo\w+", r"osteophyt\w+",
        r"arthritis", r"osteoarthritis", r"arthro(pathy|sis)",
    ),
    "osteopenia": (r"osteopeni\w+", r"osteoporo\w+", r"demineraliz\w+"),
    "tortuous aorta": (
        r"tortuo\w+( and \w+)?( ectatic| calcified| thoracic)* aorta", r"tortuosity",
        r"aorta( is| appears)?( mildly| somewhat| slightly)? tortuous", r"ectatic( thoracic)? aorta",
        r"ectasia",
    ),
    "aortic calcification": (
        r"aort(a|ic)( \w+){0,3} (calcif\w+|atheroscl\w+)", r"atheroscl\w+",
        r"calcif\w+ (of|in|within|along) the( \w+)? aort\w+",
        r"calcified (and tortuous )?(thoracic )?aorta",
    ),
    "elevated diaphragm": (
        r"elevat\w+ (of )?(the )?(left |right )?(hemi)?-?diaphragms?", r"eventration",
        r"diaphragm is( \w+)? elevated",
    ),
    "flattened diaphragm": (r"flatten\w+ (of )?(the )?(hemi)?diaphragms?",),
    "catheter": (
        r"catheters?", r"(central|picc|venous|subclavian|jugular)( venous)? lines?", r"port-?a-?cath",
        r"mediport", r"picc", r"chest port",
    ),
    "pacemaker": (r"pacemakers?", r"pacer", r"pacing", r"defibrillator", r"icd", r"aicd"),
    "sternotomy": (r"sternotomy", r"sternal (wires|sutures)", r"cabg", r"bypass grafts?"),
    "surgical clips": (r"surgical clips?", r"clips", r"cholecystectomy"),
    "tube": (r"(endotracheal|nasogastric|enteric|tracheostomy|chest|feeding|ng|et) tubes?",),
}  # fmt: skip

# Said of what is as it should be; each stands for the absence of a finding.
NORMAL: dict[str, tuple[str, ...]] = {
    "cardiomegaly": (
        r"(heart( size)?|cardiac (size|silhouette|contours?)|cardiomediastinal (silhouette|contours?))"
        r"[\w ,/]{0,60}?\b(is|are|appears?|remains?)?\s*(within normal limits|normal|unremarkable|not( \w+)? enlarged)",
        r"normal (heart|cardiac|cardiomediastinal|cardio mediastinal)( \w+)?",
    ),
    "opacity": (
        r"lungs? ?(fields|bases|zones)? ?(are|is|appear|appears|remain)( \w+)? ?(clear|normal)",
        r"clear lungs?",
    ),
    "fracture": (r"(bony|osseous|skeletal) (structures|thorax|skeleton)( \w+){0,3} intact",),
}  # fmt: skip

# Before a finding, until the end of their scope.
DENIES = (
    r"no(?! (\w+ )?(\w+ )?change)", r"not", r"without", r"free of", r"clear of", r"negative for", r"absence of", r"absent",
    r"nor", r"neither", r"never", r"(rule|ruled|r/o) out", r"resolution of", r"resolved",
    r"rather than", r"cannot see", r"lack of",
)  # fmt: skip
DOUBTS = (
    r"may", r"might", r"could", r"possib\w+", r"probab\w+", r"suspicio\w+ (for|of)", r"suspect\w*",
    r"suggest\w*", r"question\w*", r"concern\w*( for)?", r"(can|could) ?not( be)? exclude\w*", r"cannot rule out",
    r"versus", r"vs\.?", r"likely", r"presum\w+", r"consider", r"differential", r"compatible with",
    r"evaluate for", r"appearance of", r"or",
)  # fmt: skip
# Behind a finding, within the same clause.
DENIED = (
    r"(is|are|was|were) (not|no longer) (\w+ )?(seen|identified|present|visualized|evident|noted|appreciated|detected)",
    r"(is|are) absent", r"(has|have) (\w+ )?(resolved|cleared)", r"(is|are) ruled out", r"(is|are) unlikely",
    r"unlikely", r"not (seen|identified|visualized|demonstrated|appreciated|evident)",
)  # fmt: skip
DOUBTED = (
    r"(can ?not|can't|not) be (\w+ )?excluded", r"(is|are) (possible|suspected|questionable|not excluded)",
    r"(may|might|could) be present",
)  # fmt: skip
# Where the scope of a word before ends.
ENDS = (
    r"but", r"however", r"although", r"though", r"except", r"otherwise", r"with the exception of",
    r"(there|this|these|it|which|that) (is|are|may|has|have|could|might)", r"and (the|there|a|an)",
    r"related to", r"secondary to", r"due to", r"status post",
    r"with (mild|stable|chronic|old|small|bilateral|left|right)",
)  # fmt: skip
ENDS_AFTER_COMMA = r"the|there|a|an|stable|unchanged|persistent|chronic|old|healed|mild|mildly|moderate|minimal|severe|again"
SIDES = r"left|right|bilateral|bibasilar|biapical|both"
PLACES = (
    r"(upper|middle|lower) lobes?", r"lingula(r)?", r"(lung )?bases?", r"bas(al|ilar)", r"ap(ex|ices|ical)",
    r"(peri)?hil(ar|um|a)", r"retrocardiac", r"costophrenic (angle|sulcus|recess)", r"(mid|upper|lower) lung( zone)?",
    r"mid-?lung", r"(thoracic|lumbar|cervical|thoracolumbar) spine", r"ribs?", r"clavicles?",
    r"shoulders?", r"mediastin\w+", r"lungs?", r"hemithorax",
)  # fmt: skip


def any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for all of them, at word boundaries."""
    return re.compile(r"(?<![\w-])(?:" + "|".join(patterns) + r")(?![\w-])")
