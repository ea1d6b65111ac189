"""The kinds of all characters, as the regular expressions of the `tokenizers` library see them (Unicode 16).

Written by tests/text/probe_characters.py, which asks that library. For each property, runs of code points: the
length of a run and the number of its value, as bytes of seven bits, lowest first; zlib, base 85.
"""

from __future__ import annotations

import base64
import functools
import zlib

import numpy as np
from numpy.typing import NDArray

LAST = 0x10FFFF
CATEGORIES = (
    "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po",
    "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cs", "Cn",
)  # fmt: skip


@functools.cache
def values(name: str) -> NDArray[np.uint8]:
    """The value of a property for every code point: of "category" a place in CATEGORIES, of "space" (`\\s`),
    "Han" and "numeric" (what Rust's `char::is_numeric` says) 0 or 1."""
    numbers: list[int] = []
    number = shift = 0
    for byte in zlib.decompress(base64.b85decode("".join(_RUNS[name]))):
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number = shift = 0
    return np.repeat(np.array(numbers[1::2], np.uint8), numbers[::2])


_RUNS = {
    "category": (
        "c-q}rO{io?74E7!RrlWN?$=$nyZX)aoAX}Jo0*rH%uMn!lgUJl$)F?{5@KAK5D|Yc3jRQ{5Cq)}QOqWYB5ooGYH%GvqHz^OBcehC4K7528y8"
        "A&r2$3#&Z*lyZzkht5}jZcr|-S>bLyNr|ECxG&CDe;0SwKWNu~u1Y>Kr_uC;02!+65X)b!1CZt&IOt38N)Ceg%X%uex3W`vnJ-sG#b5l>@fE"
        "@E!%qDkvL(^kEG#<aCDJ#!VozQ+0226pxCR`2q3IG0xMWzN2ApWU;5IgT+BY=mE9b#(9VYvk1K!Q`&0oR&~^cTuRNm(Aaf!41<onhxCB)Vpe"
        "G95l_P>BD}tN=5_=8|MtPv`1`ZB!MT!ljV$rXVW{RT#F1|8J)g7+oe=a_jdm~H;}!z)z!Rn`#RaiRRP}Vi57%(%&2!`o6W@VNpA+mn`ApMzU"
        "B=gCbFr|VJ`m9Ol-2bFSB!(7Gzwc>|;&IlJOrRj8o;s?*(riuw?R<V(kcL&{~3~&0(v4lQz8N2MCyGjbnX~8mu=Ne%FCEZznS%Z(IX#0LY(5"
        "*u9?|-f#-{$@4xk(?HPNx#z|o12y|__QIQR6V5OJKrYmt@MeQh7Rh??=D^@aq@!FDZU8U?rV4;P!ZVlMpr36JknfsJfZbq~6HK5SJ0~F;xk2"
        "GxR?Ep8h%UlvSD={L1?#Z_>z#KPsc@#8T?tO_g#HveT#cS*F2dzk6nbDQ>x4#((nwBG>Oj$?!brfH%X7OIm)_V#99N3@VvZ%cg&4~Y@adE`!"
        "qX}Tg3~EDz(DRn?;qbm_%1XC+@wg}#UOW=J@Cm~-SN5(7%zDg3F4k`N})(-0S>$36FjCWYTOkr(_Sp`5)OS>-UYZ6d?73)Q}~mwFc8^<<;@?"
        "%T+s%z;sV$*$!w_N@@^W?AR1Zlx8NT-s`3+RD-ua#PjD&^NCRg>-f}}}z`H^{w3OIPfW_6K1IRp%tZvo=_I2-3SHnVpS;pbv8MdeRh!&#988"
        "(BA#AWM4j&+n9@+*)G2VjHT)?vtL4YKxX{a!4S4-17@2?@bR_(WM~IZjsYAwZ{s+>zW&tV0SU@6ZFiDew^-Y<Q>=!TIIJ0wgXPkasldK<e;C"
        "$HfmJD*eQ&BH7Li%lonJdGIoGFkyaE_x^SgQ)<#QIw(%ef$szAAOUaiN7xqbA(5HQNqBaA7rEq`8ur!-#i8Me$T-;4V8r?X4?Ee*`;9tR`C2"
        "u(@5N6^o~ZhU8;2BQ-~ew*$%+5-GIj_uJcARUeSTXk8b0d|io7M5q0_MQP^=?BBOvt*yMe?vRib@90h!E6G{k_Z?Yu5pruJjgna*0PqDe|u4"
        "Lnh-OHUW5lK6QmlC8%61{S$pufEay&K7);znoj8m>b`~3k$cKq`pAp3+lv+pU|CF?NrA?&6EyPjgw`aV-GB1_rgPPxJ!*Vo{vKmu2-j8tT+v"
        "oZpg$3)nTJL<oSfT%?**MY?~wQod3U%vsVq8Hv|uLPmDD{Q);}|7k!ru^#aK3n$eYZ3CKQKD+nvKmYcfOx0@2y>N~q>ZG6v7p^vM1<iXsZ`F"
        "TL4hq`TShE{*gs7_|x?DKOoYjg&APTxsY2p`ff)nPv-gT3&(bJTXoUP5#_kKAba#zW`$;AF%@PZi=^HSi<Jx_Sh_Q)?fsEy{Q6d+@nEvjUQ*"
        "X8y1mW3xqu>XB!Y(dshG&T%}{XnoL_Xc3uw>$7dC%qvuYEsV*#(f7w}3kTl?f+?md{dyNBH}n4XXb$Z=@{IdA^DXh7Jd59zeGTBIT(=M5`I1"
        "@fzZ`7F6WQw}Y_*r0AGhai{;X-QgyT}UZMAx#Z;#k^H)n7a+H11q1)|kQ^KMsrxJxp2T4nLjF6Z75_HT`9OX1fSk4p(!kaom!@FjKM&4@(E5"
        "z-ps!#Xt@NUsD7-&q5|l{fuuv?GFALBEz3bFqj#;!aE!(NNb7ho~C5p2}VrZ1Wt_dLR$@d6VZn&f0#-Ad^gUIoaEnYuf<kx@L0INU$;k?{HM"
        "37;vcJ`y@^Dc4}p0@E(jJ(?GB}4i?`hfiF{xc|kk5K>!}p7WTxrnQJ6VqqxX1UW4Z|Ha~Nk&gHK>0W9t>H8Q!g*l<*%++zq~NC%L0pd6U;|5"
        "Vr{?gMF|lwj^vm$xX*kcc!$%Mg;+r;XEAz`t1UUSIWg^_9!=y|mLSrPz0Hr8TtYbX%m$9bB|BvnvuI=$ffSQUFPF)~TdXaK=cILezpA8S0Hh"
        "xPKc?(HQf!CSieFq(!g-(O;5O?f@aZO6y3;k$R%gVJWS;M9y|8nhQfIt{qBoVDXZuxd!^^wRj1-Mxc?DR*Ec1<VvXky+x9UVqsYTo}yB8NkQ"
        "bb@R9F*QiMR+`_!fVN%_Q%h$7H-aKWu0sh<)IQRG8>uQ^1e3@injCajvGK5;({P^S^!060HBaQ@WBi&CI|jCQy(1NP#+<Q~Yh!>$A}dkX4LP"
        "@0bU4|s(;80T}?dXsp%yg=<~CN7VC)pc_NkEOa9*#5r@F;;gVmzQYI>c#fVY6dVsY?n^N#3oXr9+g52sXxD(26DGrj|QjiB<^+#a=vi0R?BH"
        "S!P=?Gc!EVj(2MNmNC<>k6blArOu3g4cC67he+ItJfy9$2A)0&!N|CaSkTwrdZkT*MpM+LEVp!Db1{xtcY((M(!9Oq(C)7x$@w`Lcd)}1GPf"
        "{ylH2LOQKH58K?x7;e!#(1|hTs)zsJ5tT9~svOP?i27_hB|8K&82t!>R#)7ey@3P!`qDv4A4>T0rA&SDr=EC%Tq`-0!*)P)Ar)uHqIBYT|Ck"
        "vu7V?g!Bt5=J+z{9D*L~AzB(o%hyHGYANUt9>p%Tyko5!QGEF(R@|gYMxt6-TnL-_07<LH#|ow4O`xMnGwiA31ZUK-g|ZQf_bT4YchXrt-5c"
        "_0Q^Cq{O|a=wis3XwommehlC;^}%)r{)=L~N}FsxOkcH(FZqRxUmMpTl1(+p-$(We=zQV^YXI8zm;ED^kz>lqqB!-=O6b)p(AQb2VOCrkfI%"
        "r%)gv>2vp=9c$smnmS)VUjwq)~*4GK?gbWkT{kkSj1`V0!t%~2F{9nF<qRby*{yyY3zeG?agUTSZc(Ow6gQJ?kU)f7VJ=OSfV&D>CJhi#9pB"
        "{rFWywgF@*{xv=aYd8w`ORY~pX``YU<o!ab_US81Nm+Zg^)OE>9Z%_by!eK%fp81S+3$1i#<TUbXwrb^Y<(s@)uoX&5_d{<%g#0Z7mP)&DIk"
        "}!l3V+>JuP#PBdtaFzrio-BUGW~4M5R)?PwNA`QQB6a_<1SXNqlyc9I2wG#WX}VT0f@;dC^-K=|K(jCgmRL?iTk^DE+R|DJ-2Zb@vWR9qT)E"
        "$2H4-r*=$>giY80rs$875-2LIonfOv#rf-KxMItvAxr?em7X%vuSsjliL}3tP-#^xxy03CZW5*8A?=Qt3aKir0Pb8Vzzz;_+ANdCU!`IzRu#"
        "Gx3zC+e%w7<!DEL!WdpZ)Tv}*_wB!Fx~V?0nU7Z0T$?BA_@(;Vwelaz;$`QsIRgdb|4f~n6xH1xA6e-P?2<R@zy&!u-Uf<1k83%2@WqNmTmI"
        "U@PQmBjklAwNx^K^i?JBEM7L0&8nWTf4hdd1<K;QgV}{HXbWDgA9BVdJ-Yt9Yqjupzc|tqFs-aKFoI!X)E(=fZy>$caE*oToCGS!y3PIJ@oP"
        "UhK|7)et$c>7|;T+h`(vYy%Trs(>0i6&5t?yT+1KFsYCd-Ms7}Kv#1o!f3wMd0(GGLJ1*bN*Fihhkwknl-@<<us-@t%C5s}s96~*Zp6AMMf{"
        "C}HW_(+QDdkVYMGO?~N6NfEK8irqo11x0qCjipz5M@VwHqi;snlz!ZZ*-8b$wkYF@&Te(8ZMH2!y140oRQd{FlN3q;LCsrrmE$8_a+DR{k|R"
        "RiCGP)>A&^r6szSrHSd&NTkUl{~S~jiQm*fEzPe=BQ|-fPti;Xp0~P#kle$3Qeud&oK@YBHu5u8BCAi*@q_vxbWNUfuzus@^LZm`qg_@kPcJ"
        "yN4O+!{!#@&RNBHu`c)Pc4aHykB@xB!JEvRH%G!u$<BMXqK<_Bf_Mu%eQF=L0;D8RoGb?*h-CF?JR<s5bXoA%%n+(}ZA&Zj535drWEmQQ5j2"
        "T=fyph+WSB?3pFS;P2slW%5*Ey|K6!-n%3hy1wVznbi)zxEhT$YCUp`4ryYkBoYdrHwk$=gk>H!PrqeHzh;Dn9aBHFD;H+!+>mz*<)d)$M>;"
        "V&iOJbP<}78{_{1z@N-KG{{8~j@mt~Tk(02SZ@(Fa^diwWCj2#`-}U*YNRRl11^wcC#}Q#S`2+Lw28QFm_&3LY|A*VK-S0mEMLAE="
    ),
    "space": ("c-rG+U}Y3yU}Q`IVkscLuMH&r3o&pr$}%u9vI05!K)gU6Bs$-j0RU+b1<3"),
    "Han": (
        "c-m`-WsqWIWQb(sVYtS~sL#L%<S;TyGH^2TF|aTmVP`mC%;><-u!NDZVG|?6J0?aZhAhU8SBwlyKpjkseG8Zv9-L)jRAAVpz{tjMj}a)}qzl"
        "x$(Tb6u;T;R(B4LJkER2u18BVJ)vNAkSV7#!yoB;r+5f?}"
    ),
    "numeric": (
        "c-l=;O(=v>6uswtzh=h2873JPB8r5R%)-isEbWvP7XC_!ot2PeHA)i2Y{*h6i(z3QWrdYeN?AxYBiT6j^G#Wt`_8-XzI)HT?{!E7i(=piV8p"
        "^fl#Uh9T&vl&Xch=tTug;rVYr`>V$75K;$ed8Bv(%=F-<-e#tldnHcUVwxO2GsbXn#@le<KMIMMTENEAl}_nDHBf)w>+d@8h9)&0}fMF|cb9"
        "7$tX63E+<!drwfYc5SvicrEjk49{)YmSuofRv(vyqW9st9mcg<g}R`Wle>?6Jhy`_MgeB>)nzz#H1JH9M`>(S~N0u9gC?l>U40Uai<<DB{_;"
        "_Y8a$9!R-6sB_m}-JNkLh&3%djHDHn#YKRtIx=}41g`SPnV^5Q|veX=pStg~UiXcsFDe*YdA0-baoOxc!c#xwCLlVQG#a9{Cgig>`9bOPVNe"
        "}V*7azy5FSEE@;x1e9fBs<QO<Q+Hs_~@%<oi7MBT-g}5mS=Hy)T`}>BX#0EwAQFqi!8G9Ejd_rH|Px!ltse;6<)H{-c+;re96VFaDcM2L"
    ),
}
